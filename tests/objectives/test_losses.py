"""The fused cross-entropy against the plain one, in value and gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from of_jax.config import Config
from of_jax.cost_model import hlo
from of_jax.models import partition
from of_jax.objectives import losses
from of_jax.objectives.losses import cross_entropy
from of_jax.train.sharding import make_mesh


def plain(x: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float,
          cap: float | None) -> Any:
  logits = (x @ table).astype(jnp.float32)
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  log_z = jax.nn.logsumexp(logits, -1)
  ce = log_z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return jnp.sum(weights * (ce + z_loss * log_z ** 2)), jnp.sum(weights * ce)


@pytest.mark.parametrize("at_once", (2 ** 30, 4 * 37 * 2, 1))
@pytest.mark.parametrize("z_loss, cap", ((0.0, None), (0.1, None), (0.1, 15.0)))
def test_equals_the_plain_form(at_once: int, z_loss: float, cap: float | None,
                               monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", at_once)
  rng = np.random.default_rng(0)
  x = rng.standard_normal((4, 12, 8)).astype(np.float32)
  table = rng.standard_normal((8, 37)).astype(np.float32) * 5
  targets = rng.integers(0, 37, (4, 12))
  weights = (rng.random((4, 12)) < 0.8).astype(np.float32)

  def fused(x: jax.Array, table: jax.Array) -> Any:
    objective, parts = cross_entropy(x, table, targets, weights, z_loss, cap)
    # Scaled, so that a lost cotangent shows.
    return objective / 3, parts

  (objective, parts), gradients = jax.jit(
      jax.value_and_grad(fused, (0, 1), has_aux=True))(x, table)
  (expected, expected_loss), expected_gradients = jax.value_and_grad(
      lambda x, table: plain(x, table, targets, weights, z_loss, cap), (0, 1),
      has_aux=True)(x, table)
  np.testing.assert_allclose(objective * 3, expected, rtol=1e-6)
  np.testing.assert_allclose(parts["loss"], expected_loss, rtol=1e-6)
  assert parts["count"] == weights.sum()
  for ours, theirs in zip(gradients, expected_gradients):
    np.testing.assert_allclose(ours * 3, theirs, atol=1e-5 * np.abs(theirs).max())
  alone, _ = jax.jit(lambda: cross_entropy(x, table, targets, weights, z_loss, cap))()
  np.testing.assert_allclose(alone, expected, rtol=1e-6)


def test_large_logits_do_not_overflow() -> None:
  x, table = np.full((1, 2, 4), 1e3, np.float32), np.full((4, 5), 1e3, np.float32)
  table[:, 2] *= 2
  targets, weights = np.array([[2, 0]]), np.ones((1, 2), np.float32)
  _, parts = cross_entropy(x, table, targets, weights, 0.0)
  np.testing.assert_allclose(parts["loss"], 4e6)


def test_over_a_mesh_the_table_moves_once(make_config: Callable[..., Config],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
  """Eight chunks or one: it is gathered before the loop, its gradient summed behind it."""
  mesh = make_mesh(make_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2))
  rng = np.random.default_rng(0)
  x = rng.standard_normal((8, 16, 32)).astype(np.float32)
  table = rng.standard_normal((32, 64)).astype(np.float32)
  targets, weights = rng.integers(0, 64, (8, 16)), np.ones((8, 16), np.float32)
  rows, matrix = (NamedSharding(mesh, spec) for spec in (
      partition.batch_spec(3), partition.parameter_spec(("embed", "vocab"))))
  monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", 2 * 64)  # Two positions of a device's 2 x 32.

  def objective(x: jax.Array, table: jax.Array) -> Any:
    return cross_entropy(x, table, targets, weights, 0.1)[0]

  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.value_and_grad(objective, (0, 1)), out_shardings=(
        None, (rows, matrix))).lower(
            jax.device_put(x, rows), jax.device_put(table, matrix)).compile()
    value, gradients = compiled(jax.device_put(x, rows), jax.device_put(table, matrix))
  expected, expected_gradients = jax.value_and_grad(
      lambda x, table: plain(x, table, targets, weights, 0.1, None)[0], (0, 1))(x, table)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for ours, theirs in zip(gradients, expected_gradients):
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())
  program = hlo.read(compiled.as_text())
  trips = {op.trips for op in program.operations if op.matrix_flops}
  large = [c for c in program.collectives if c.bytes >= table.nbytes / 4]
  assert trips == {8} and large and {c.trips for c in large} == {1}
