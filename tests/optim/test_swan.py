"""SWAN against NumPy float64, and its relation to multi-normalised gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.optim import swan
from of_jax.optim.optimizers.sinkgd import normalize
from of_jax.optim.optimizers.swan import transform

# [in, out]: what the paper calls m x n has m = out.
SHAPES = ((24, 12), (20, 6), (6, 20))


def gradients(rows: int, columns: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=(2, rows, columns)).astype(np.float32)


def in_numpy(g: np.ndarray) -> np.ndarray:
  """Computes SWAN of one matrix: each output's inputs normed, then the polar factor, as large."""
  normed = (g - g.mean(0)) / g.std(0)
  u, s, v = np.linalg.svd(normed, full_matrices=False)
  u, v = u[:, s > 1e-9], v[s > 1e-9]
  return u @ v * np.linalg.norm(normed) / np.sqrt(len(v))


@pytest.mark.parametrize("rows, columns", SHAPES)
def test_swan_is_its_formula(rows: int, columns: int) -> None:
  """By an SVD in float64, for stacked matrices of any size, to the iteration's end."""
  g = gradients(rows, columns)
  out = np.asarray(transform(jnp.asarray(g * np.array([1e-6, 1e6])[:, None, None]), 30))
  for ours, one in zip(out, np.float64(g)):
    np.testing.assert_allclose(ours, in_numpy(one), atol=2e-3)


@pytest.mark.parametrize("rows, columns", ((40, 6), (80, 12)))
def test_singular_values_are_equal(rows: int, columns: int) -> None:
  """After the default ten steps, all sqrt(m n / min(m, n)) for well-conditioned gradients."""
  values = np.linalg.svd(transform(jnp.asarray(gradients(rows, columns))), compute_uv=False)
  np.testing.assert_allclose(values, np.sqrt(max(rows, columns)), rtol=1e-3)


def test_the_size_of_a_row_is_forgotten_and_zeros_stay() -> None:
  g = gradients(20, 6)
  plain = np.asarray(transform(jnp.asarray(g)))
  scaled = g * np.geomspace(1e-3, 1e3, 6, dtype=np.float32)
  np.testing.assert_allclose(transform(jnp.asarray(scaled)), plain, atol=1e-4)
  assert np.abs(np.asarray(transform(jnp.asarray(g * np.linspace(1, 9, 20)[:, None]))) - plain
                ).max() > 0.1
  g[..., 2] = 0
  with_zeros = np.asarray(transform(jnp.asarray(g)))
  assert np.all(np.isfinite(with_zeros)) and np.all(with_zeros[..., 2] == 0)
  np.testing.assert_array_equal(transform(jnp.zeros((1, 4, 3))), 0)


def test_swan_is_one_round_of_multi_normalised_descent() -> None:
  """Where each output's gradient is centred: its two norms in turn. Whatever has no more outputs
  than inputs is then at the fixed point; what has more is not."""
  g = gradients(40, 6)
  g -= g.mean(1, keepdims=True)
  ours = np.asarray(transform(jnp.asarray(g), 20))
  # Muon's quintic leaves singular values between 0.5 and 1.5: its directions are what is alike.
  theirs = np.asarray(normalize(jnp.asarray(g), ("columns", "spectrum"), 1))
  for a, b in zip(ours, theirs):
    u, _, v = np.linalg.svd(np.float64(b), full_matrices=False)
    np.testing.assert_allclose(a, u @ v * np.sqrt(40), atol=2e-3)
  for shape, is_fixed in (((40, 6), True), ((6, 40), False)):
    once = transform(jnp.asarray(gradients(*shape)), 40)
    moved = np.abs(np.asarray(transform(once, 40)) - np.asarray(once)).max()
    assert (moved < 1e-2) == is_fixed, (shape, moved)


def test_swan_keeps_no_state_of_matrices_and_adam_moves_the_rest() -> None:
  params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
  optimizer = swan(0.1, weight_decay=0.5)
  state = optimizer.init(params)
  assert not [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (4, 3)]
  g = jnp.asarray(gradients(4, 3)[0])
  updates, _ = optimizer.update({"w": g, "b": jnp.full(3, 2.0)}, state, params)
  np.testing.assert_allclose(
      updates["w"], -0.1 * (0.05 * np.asarray(transform(g[None]))[0] + 0.5), rtol=1e-5)
  np.testing.assert_allclose(updates["b"], -0.1 * (1 + 0.5), rtol=1e-5)
