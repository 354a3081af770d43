"""Linear maps."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.models.functional import build_network, named_leaves
from of_jax.models.parameter import product


@pytest.mark.parametrize("x, kernel, inputs", [
    ((3, 5, 8), (8, 24), 1), ((3, 5, 8), (8, 4, 6), 1), ((3, 5, 2, 4), (2, 4, 24), 2),
    ((3, 5, 24), (24, 8), 1)])
def test_gradients_of_a_product_are_those_of_the_formula(
    x: tuple[int, ...], kernel: tuple[int, ...], inputs: int) -> None:
  rng = np.random.default_rng(0)
  x_given, kernel_given = rng.normal(size=x), rng.normal(size=kernel)
  slope = rng.normal(size=x[:-inputs] + kernel[inputs:])

  def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.sum(product(x, kernel, inputs) * jnp.asarray(slope, jnp.float32))

  dx, dkernel = jax.jit(jax.grad(loss, (0, 1)))(
      jnp.asarray(x_given, jnp.float32), jnp.asarray(kernel_given, jnp.float32))
  rows = int(np.prod(kernel[:inputs]))
  x_NxI, w_IxO, g_NxO = (x_given.reshape(-1, rows), kernel_given.reshape(rows, -1),
                         slope.reshape(15, -1))
  np.testing.assert_allclose(dx, (g_NxO @ w_IxO.T).reshape(x), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dkernel, (x_NxI.T @ g_NxO).reshape(kernel), rtol=1e-5, atol=1e-5)


def test_the_smaller_factor_of_a_gradient_comes_first() -> None:
  """On CPU, where the first one is copied: x^T g, not the transpose of g^T x."""
  def is_transposed(rows: int, columns: int) -> bool:
    def loss(kernel: jax.Array) -> jax.Array:
      return jnp.sum(jnp.square(product(jnp.ones((256, rows)), kernel, 1)))

    return "transpose[" in str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((rows, columns))))

  assert is_transposed(512, 64) and not is_transposed(64, 512)


@pytest.mark.parametrize("fields", (
    {"model__kv_heads": 2, "model__head_dim": 24}, {"model__sigma_reparam": "attention"},
    {"model__attention_gate": "element"}, {"model__attention_gate": "head"},
    {"model__block": "op"}), ids=str)
def test_attention_drawn_evenly(fields: dict[str, object], make_config: Callable[..., Config]
                                ) -> None:
  """Within 1 / sqrt(inputs of an output) and up to it; all else as it is drawn without."""
  common = {"model__width": 64, "model__linear_bias": True, **fields}
  drawn = {init: named_leaves(build_network(make_config(
      **common, model__attention_init=init)).init(jax.random.key(0)))
      for init in ("normal", "uniform")}
  model = make_config(**common).model
  assert model.head_dim is not None
  out = model.heads * model.head_dim
  inputs = {"query": 64, "key": 64, "value": 64, "out": out,
            "gate": model.head_dim if model.attention_gate == "head" else 64}
  changed = set()
  for path, leaf in drawn["uniform"].items():
    *_, parent, module, kind = ("", *path.split("/"))
    module = "gate" if parent == "gate" else module
    is_drawn = module in inputs and "attention" in path and kind in ("kernel", "bias")
    if is_drawn and not (module == "gate" and kind == "bias"):
      bound = 1 / math.sqrt(inputs[module])
      largest = float(np.abs(leaf).max())
      assert 0.9 * bound < largest <= bound * (1 + 1e-6), (path, largest, bound)
      assert float(np.std(leaf)) == pytest.approx(bound / math.sqrt(3), rel=0.15), path
      changed.add(module)
    elif kind != "gamma":
      np.testing.assert_array_equal(leaf, drawn["normal"][path], err_msg=path)
  assert changed >= {"query", "key", "value", "out"}
  assert ("gate" in changed) == (model.attention_gate != "none")
