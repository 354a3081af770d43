"""Matrix views: what each parameter of a transformer is, and that nothing is lost on the way."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

from of_jax.config import Config
from of_jax.models.functional import build_network, named_leaves
from of_jax.optim.matrices import MatrixView, plain_view, view, views, views_like

MakeConfig = Callable[..., Config]

# Width 32, 2 layers, 4 heads of 8, an MLP of 128, 64 tokens, 16 positions.
EXPECTED = {
    "embedding/token": (1, 64, 32), "embedding/position": (1, 16, 32),
    "stacks/0/attention/query/kernel": (2, 32, 32), "stacks/0/attention/query/bias": (2, 1, 32),
    "stacks/0/attention/key/kernel": (2, 32, 32), "stacks/0/attention/key/bias": (2, 1, 32),
    "stacks/0/attention/value/kernel": (2, 32, 32), "stacks/0/attention/out/kernel": (2, 32, 32),
    "stacks/0/attention/query_norm/scale": (2, 1, 8),
    "stacks/0/attention/key_norm/scale": (2, 1, 8),
    "stacks/0/mlp/up/kernel": (2, 32, 128), "stacks/0/mlp/down/kernel": (2, 128, 32),
    "stacks/0/attention_gain/value": (2, 1, 1), "stacks/0/mlp_gain/value": (2, 1, 1),
    "unembedding/kernel": (1, 32, 64),
}


def test_views_of_a_transformer(make_config: MakeConfig) -> None:
  network = build_network(make_config(
      model__depth=2, model__block="op", model__qk_bias=True, model__beta_trainable=True))
  found = named_leaves(views(network.axes, network.shapes))
  assert {name: (v.batch, v.rows, v.columns) for name, v in found.items()} == EXPECTED
  matrices = {name for name, v in found.items() if v.is_matrix}
  assert matrices == {name for name in EXPECTED if name.endswith("kernel") or "embedding/" in name}


@pytest.mark.parametrize("axes, shape, rows, columns", (
    (("layers", "embed", "heads", "head_dim"), (3, 4, 2, 5), 4, 10),
    (("layers", "heads", "head_dim", "embed"), (3, 2, 5, 4), 10, 4),
    (("heads", "layers", "embed"), (2, 3, 4), 2, 4),
    (("layers", "heads", "head_dim"), (3, 2, 5), 1, 10),
    (("layers",), (3,), 1, 1),
    ((), (), 1, 1),
))
def test_split_gathers_and_join_restores(axes: tuple[str, ...], shape: tuple[int, ...], rows: int,
                                         columns: int) -> None:
  x = np.arange(np.prod(shape, dtype=int)).reshape(shape)
  found = view(axes, shape)
  split = np.asarray(found.split(x))
  layer = axes.index("layers") if "layers" in axes else None
  assert split.shape == (1 if layer is None else 3, rows, columns)
  for i, matrix in enumerate(split):
    of_layer = x if layer is None else np.take(x, i, layer)
    np.testing.assert_array_equal(matrix, of_layer.reshape(rows, columns))
  np.testing.assert_array_equal(found.join(split), x)
  np.testing.assert_array_equal(found.transposed().split(x), split.swapaxes(1, 2))
  np.testing.assert_array_equal(found.transposed().join(split.swapaxes(1, 2)), x)
  # A factor a matrix reaches that matrix alone.
  factors = np.arange(1, len(split) + 1)
  np.testing.assert_array_equal(found.split(x * found.spread(factors)),
                                split * factors[:, None, None])


def test_axes_decide_and_not_shapes() -> None:
  """The same shape is two vectors, a matrix or a vector, by what its axes are called."""
  assert not view(("layers", "channel"), (4, 4)).is_matrix
  assert view(("embed", "mlp"), (4, 4)).is_matrix
  assert not view(("heads", "head_dim"), (4, 4)).is_matrix


def test_what_is_no_matrix_is_refused() -> None:
  with pytest.raises(ValueError, match="are no matrix: 3 sides"):
    view(("embed", "mlp", "vocab"), (2, 2, 2))
  with pytest.raises(ValueError, match="name 2 axes of the shape"):
    view(("embed", "mlp"), (2, 2, 2))


def test_plain_arrays_are_batched_over_leading_axes() -> None:
  found = plain_view((2, 3, 4, 5))
  assert (found.batch, found.rows, found.columns) == (6, 4, 5) and found.is_matrix
  assert not plain_view((5,)).is_matrix and plain_view((5,)).columns == 5
  assert plain_view(()).split(np.float32(3)).shape == (1, 1, 1)


def test_views_follow_a_masked_tree() -> None:
  tree: dict[str, Any] = {"a": np.ones((2, 3)), "b": optax.MaskedNode()}
  named = {"a": view(("embed", "mlp"), (2, 3)), "b": view(("mlp",), (3,))}
  for found in (views_like(tree, named), views_like(tree)):
    assert isinstance(found["a"], MatrixView) and isinstance(found["b"], optax.MaskedNode)
    assert jax.tree.map(lambda x, v: v.rows, tree, found)["a"] == 2
