"""Norms with statistics of batches, the L1 norm and EvoNorm: properties that the papers state.

The formulas of Unified Normalization and EvoNorm are compared with the authors' code in
tests/fidelity/norms.py.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.models.functional import build_network
from of_jax.models.norms import Norm, make_norm
from of_jax.models.probe import Context

MakeConfig = Callable[..., Config]
WIDTH, EPS = 8, 1e-2
TRAINING = Context(jnp.zeros((1, 1), jnp.int32), training=True)


def pulled(norm: Norm, x: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray]:
  """Output in training, gradients of the parameters by name, and of x."""
  graph, state = nnx.split(norm)
  y, pull = jax.vjp(lambda state, x: nnx.merge(graph, state)(x, TRAINING), state, x)
  of_state, of_x = pull(jnp.asarray(gradient))
  return y, {name: leaf[...] for name, leaf in of_state.items()}, of_x


def test_batch_norm_is_its_formula_in_training(make_config: MakeConfig) -> None:
  """Gradients flow through both statistics; the running ones move by 1 - decay."""
  x, g = np.random.default_rng(0).standard_normal((2, 3, 5, WIDTH)).astype(np.float32)
  x = x * np.linspace(1, 3, WIDTH, dtype=np.float32) + 2
  norm = make_norm("batch", nnx.Rngs(0), make_config(
      model__norm="batch", model__norm_eps=EPS, model__running_decay=0.8).model, WIDTH)
  norm.scale[...] = gamma = np.linspace(0.5, 2, WIDTH, dtype=np.float32)
  y, gradients, of_x = pulled(norm, x, g)

  wide, h = np.float64(x), np.float64(g) * gamma
  mean, variance = wide.mean((0, 1)), wide.var((0, 1))
  z = (wide - mean) / np.sqrt(variance + EPS)
  np.testing.assert_allclose(y, gamma * z, rtol=1e-5, atol=1e-5)
  expected = (h - h.mean((0, 1)) - z * (h * z).mean((0, 1))) / np.sqrt(variance + EPS)
  np.testing.assert_allclose(of_x, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gradients["scale"], (g * z).sum((0, 1)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gradients["running_mean"], 0.2 * mean, rtol=1e-5)
  np.testing.assert_allclose(gradients["running_variance"], 0.8 + 0.2 * variance, rtol=1e-5)


def test_l1_norm_is_layer_norm_at_gaussian_vectors(make_config: MakeConfig) -> None:
  """Within the sampling error of 65,536 numbers, and its gradient is that of the mean size."""
  width = 65_536
  x = np.random.default_rng(0).standard_normal((2, width)).astype(np.float32) * 5 + 1
  model = make_config(model__norm="l1").model
  l1, layer = (make_norm(name, nnx.Rngs(0), model, width) for name in ("l1", "layer"))
  ours, theirs = l1(x, TRAINING), layer(x, TRAINING)
  np.testing.assert_allclose(ours / theirs, 1, rtol=0.02)
  l1.scale[...] = jnp.ones(width)
  np.testing.assert_allclose(l1(x, TRAINING) / theirs, math.sqrt(math.pi / 2), rtol=0.02)

  small, g = np.random.default_rng(1).standard_normal((2, 3, 5, WIDTH)).astype(np.float32)
  norm = make_norm("l1", nnx.Rngs(0), make_config(
      model__norm="l1", model__norm_eps=0).model, WIDTH)
  _, _, of_x = pulled(norm, small, g)
  centred = np.float64(small) - small.mean(-1, keepdims=True, dtype=np.float64)
  size, h = np.abs(centred).mean(-1, keepdims=True), g * math.sqrt(2 / math.pi)
  sign = np.sign(centred)
  expected = (h - h.mean(-1, keepdims=True) - (sign - sign.mean(-1, keepdims=True))
              * (h * centred / size).mean(-1, keepdims=True)) / size
  np.testing.assert_allclose(of_x, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form, sees_others", (("evonorm_s0", False), ("evonorm_b0", True)))
def test_evonorm_sees_other_tokens_where_its_file_says_so(
    form: str, sees_others: bool, make_config: MakeConfig) -> None:
  """In training: S0 is causal, B0 is not."""
  network = build_network(make_config(model__mlp=form, model__depth=1))
  params = jax.jit(network.init)(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(1, 64, (2, 16))
  others = np.concatenate([tokens[:, :8], tokens[:, 8:] % 63 + 1], 1)
  plain, changed = jax.jit(lambda params: [
      network.apply(params, rows, training=True)[0][:, :8] for rows in (tokens, others)])(params)
  assert np.array_equal(plain, changed) != sees_others


@pytest.mark.parametrize("fields, message", (
    ({"mlp": "evonorm_s0", "mlp_norm": "rms"}, "model.mlp_norm.*evonorm_s0 has no nonlinearity"),
    ({"norm": "l1", "norm_eps_placement": "outside"}, "norm_eps_placement.*divides by no root"),
    ({"running_decay": 0.5}, "part of model.norm=batch or unified and does nothing in rms"),
    ({"unified_window": 5, "norm": "batch"}, "part of model.norm=unified and does nothing in"),
    ({"norm": "unified", "unified_window": 1}, "unified_window=1: must be at least 2"),
    ({"norm": "unified", "running_decay": 1}, "must be at least 0 and below 1")), ids=str)
def test_what_would_do_nothing_is_refused(fields: dict[str, Any], message: str,
                                          make_config: MakeConfig) -> None:
  with pytest.raises(UserError, match=message):
    make_config(**{f"model__{name}": value for name, value in fields.items()})


@pytest.mark.slow
def test_unified_norm_is_renewed_once_however_it_is_computed(make_config: MakeConfig) -> None:
  """Recomputed or kept: the same state after a step, in the slot of step 1 alone."""
  config = make_config(model__norm="unified", model__depth=2)
  tokens = np.random.default_rng(0).integers(1, 64, (2, 16))

  def renewed(**fields: Any) -> Any:
    network = build_network(dataclasses.replace(
        config, model=dataclasses.replace(config.model, **fields)))
    params = jax.jit(network.init)(jax.random.key(0))
    gradients = jax.jit(jax.grad(lambda params: jnp.sum(
        network.apply(params, tokens, training=True)[0] ** 2)))(params)
    return network.running(gradients)["stacks"]["0"]["attention_norm"]

  kept, recomputed = renewed(), renewed(remat="full")
  np.testing.assert_array_equal(kept["running_steps"], [1, 1])
  for name, leaf in kept.items():
    np.testing.assert_allclose(recomputed[name], leaf, rtol=2e-6, atol=1e-9, err_msg=name)
  filled = np.any(np.asarray(kept["running_squares"]) != 0, (0, 2))
  np.testing.assert_array_equal(filled, [False, True, False, False])
