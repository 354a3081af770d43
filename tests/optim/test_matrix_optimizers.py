"""Muon, SinkGD and AdaFactor: their papers' properties, and formulas against NumPy float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from of_jax.optim import adafactor, muon, scale_by_adafactor, scale_by_muon, sinkgd
from of_jax.optim.optimizers.muon import orthogonalize
from of_jax.optim.optimizers.sinkgd import normalize


def with_spectrum(values: np.ndarray, rows: int, columns: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  u, _ = np.linalg.qr(rng.normal(size=(rows, len(values))))
  v, _ = np.linalg.qr(rng.normal(size=(columns, len(values))))
  return (u * values) @ v.T


@pytest.mark.parametrize("rows, columns", ((12, 12), (6, 20), (20, 6)))
def test_muon_flattens_the_spectrum(rows: int, columns: int) -> None:
  """Singular values in [0.5, 1.5] from 0.05 of the norm on, each its own; the vectors stay."""
  count = min(rows, columns)
  # From just above 0.05 of the Frobenius norm to the largest that leaves room for it.
  small = np.linspace(0.051, 0.1, count - 1)
  values = np.append(small, np.sqrt(1 - np.sum(small ** 2)))
  matrices = np.stack([with_spectrum(values, rows, columns, seed) for seed in range(2)])
  out = np.asarray(orthogonalize(jnp.asarray(matrices * np.array([1e-3, 1e3])[:, None, None])))
  found = np.linalg.svd(out, compute_uv=False)
  assert found.min() > 0.5 and found.max() < 1.5
  # Stacked matrices are treated apart: the sizes of the two differ by 1e6.
  x = matrices.astype(float)
  for _ in range(5):
    gram = x @ x.swapaxes(1, 2)
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
  np.testing.assert_allclose(out, x, atol=2e-3)  # 1e-7 / 1e-3 of the floor, five times tripled.


def test_muon_moves_hidden_matrices_and_adamw_the_rest() -> None:
  rng = np.random.default_rng(0)
  params = {"hidden": rng.normal(size=(2, 4, 16)), "table": rng.normal(size=(8, 4)),
            "gain": np.ones(4)}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
  hidden = {"hidden": True, "table": False, "gain": False}
  decays = {"hidden": True, "table": True, "gain": False}
  optimizer = muon(0.1, weight_decay=0.2, hidden=hidden, mask=decays)
  updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
  for i in range(2):
    # After one step the momentum has the gradient's direction.
    expected = 2 * orthogonalize(grads["hidden"][i:i + 1])[0]  # sqrt(16 / 4)
    np.testing.assert_allclose(updates["hidden"][i],
                               -0.1 * (expected + 0.2 * params["hidden"][i]), rtol=1e-4, atol=1e-5)
  adamw = optax.adamw(0.1, b1=0.9, b2=0.95, eps=1e-10, weight_decay=0.2, mask=decays)
  expected, _ = adamw.update(grads, adamw.init(params), params)
  for name in ("table", "gain"):
    np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5)
  # No moments are kept for what the other part moves.
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 4 * 16 + 2 * (8 * 4 + 4) + 1
  rms = scale_by_muon(scale="rms")
  larger, _ = rms.update({"a": grads["hidden"]}, rms.init({"a": params["hidden"]}))
  np.testing.assert_allclose(larger["a"][0], 0.2 * 4 * orthogonalize(grads["hidden"][:1])[0],
                             rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="muon is for matrices"):
    scale_by_muon().init({"vector": jnp.ones(3)})


def test_sinkgd_brings_rows_and_columns_to_unit_rms() -> None:
  rng = np.random.default_rng(0)
  scales = np.exp(rng.normal(size=(2, 6, 1))) * np.exp(rng.normal(size=(2, 1, 9)))
  matrices = rng.normal(size=(2, 6, 9)) * scales * np.array([1e-20, 1e15])[:, None, None]
  out = np.asarray(normalize(jnp.asarray(matrices, jnp.float32), iterations=40))
  for axis in (1, 2):
    np.testing.assert_allclose(np.sqrt(np.mean(out ** 2, axis)), 1, rtol=1e-5)
  # Five rounds, as the paper has it: sqrt(n) over row norms, sqrt(m) over column norms.
  x = matrices.astype(float)
  for _ in range(5):
    x = np.sqrt(9) * x / np.linalg.norm(x, axis=2, keepdims=True)
    x = np.sqrt(6) * x / np.linalg.norm(x, axis=1, keepdims=True)
  five = np.asarray(normalize(jnp.asarray(matrices, jnp.float32)))
  np.testing.assert_allclose(five, x, rtol=1e-5, atol=1e-6)
  assert 1e-5 < np.abs(np.sqrt(np.mean(five ** 2, 2)) - 1).max()  # Not yet at the fixed point.
  np.testing.assert_array_equal(normalize(jnp.zeros((1, 2, 3))), 0)
  # Other norms: the last one holds.
  spectrum = np.linalg.svd(normalize(jnp.asarray(matrices), ("rows", "spectrum"), 1),
                           compute_uv=False)
  assert spectrum.min() > 0.5 * 3 and spectrum.max() < 1.5 * 3
  whole = normalize(jnp.asarray(matrices), ("matrix",), 1)
  rms = np.sqrt(np.mean(matrices ** 2, (1, 2), keepdims=True))
  np.testing.assert_allclose(whole, matrices / rms, rtol=1e-5)


def test_sinkgd_is_stateless_on_matrices() -> None:
  params = {"w": jnp.ones((3, 4, 5)), "b": jnp.ones(5)}
  optimizer = sinkgd(0.1, weight_decay=0.5)
  state = optimizer.init(params)
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 5 + 1
  rng = np.random.default_rng(0)
  grads = {"w": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32), "b": jnp.zeros(5)}
  updates, _ = optimizer.update(grads, state, params)
  np.testing.assert_allclose(updates["w"], -0.1 * (normalize(grads["w"]) + 0.5), rtol=1e-5)
  np.testing.assert_allclose(updates["b"], -0.05, rtol=1e-6)
  with pytest.raises(ValueError, match="not a choice of rows, columns, matrix, spectrum"):
    sinkgd(0.1, norms=("row",)).init(params)


def numpy_adafactor(grads: list[np.ndarray], b1: float, exponent: float, clip: float) -> np.ndarray:
  """One matrix or vector: the last update before the learning rate."""
  rows = columns = v = m = np.zeros(1)
  for t, g in enumerate(grads, 1):
    decay, square = 1 - t ** -exponent, g.astype(float) ** 2 + 1e-30
    if g.ndim == 2:
      rows = decay * rows + (1 - decay) * square.mean(1)
      columns = decay * columns + (1 - decay) * square.mean(0)
      v = np.outer(rows, columns) / rows.mean()
    else:
      v = decay * v + (1 - decay) * square
    u = g / np.sqrt(v)
    u = u / max(1, np.sqrt(np.mean(u ** 2)) / clip)
    m = b1 * m + (1 - b1) * u
  return m


@pytest.mark.parametrize("b1, exponent, clip", ((0.9, 0.8, 1.0), (0.0, 0.5, 0.3)))
def test_adafactor_is_the_papers(b1: float, exponent: float, clip: float) -> None:
  rng = np.random.default_rng(0)
  shapes = {"stack": (2, 4, 6), "one": (5, 3), "vector": (7,)}
  grads: list[Any] = [{name: np.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-8, 8),
                                        np.float32) for name, shape in shapes.items()}
                      for _ in range(4)]
  optimizer = scale_by_adafactor(b1, exponent, clip)
  state, update = optimizer.init(grads[0]), jax.jit(optimizer.update)
  for g in grads:
    updates, state = update(g, state)
  for name in shapes:
    for i in range(2) if name == "stack" else (Ellipsis,):
      expected = numpy_adafactor([g[name][i] for g in grads], b1, exponent, clip)
      np.testing.assert_allclose(updates[name][i], expected, rtol=2e-5)
  assert state.rows["stack"].shape == (2, 4) and state.columns["stack"].shape == (2, 6)


def test_adafactor_is_optaxs_on_one_matrix() -> None:
  """Without stacked layers they differ only in Optax scaling by lr before the momentum."""
  rng = np.random.default_rng(0)
  params = {"w": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}
  ours = adafactor(0.1, weight_decay=0.3)
  theirs = optax.adafactor(0.1, min_dim_size_to_factor=1, multiply_by_parameter_scale=False,
                           momentum=0.9, weight_decay_rate=0.03)
  a, b = ours.init(params), theirs.init(params)
  for _ in range(3):
    grads = {"w": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}
    ua, a = ours.update(grads, a, params)
    ub, b = theirs.update(grads, b, params)
    np.testing.assert_allclose(ua["w"], ub["w"], rtol=1e-4)
