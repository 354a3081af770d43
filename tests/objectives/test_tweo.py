"""TWEO's term and dropout in the train step: values, gradients, and what may not change them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.config import Config, TrainConfig
from of_jax.models.functional import build_network, named_leaves
from of_jax.models.probe import PENALTY
from of_jax.objectives import tweo
from of_jax.train.sharding import make_mesh
from tests.train.test_step import run

MakeConfig = Callable[..., Config]
# Entries of the stream lie around 1, and tau among them.
TERM = {"model__width": 16, "model__depth": 2, "model__heads": 2, "train__tweo_weight": 0.3,
        "train__tweo_threshold": 0.7, "train__batch_size": 8, "telemetry__level": "off"}


def plain(x_LxBxTxD: np.ndarray, weights_BxT: np.ndarray, tau: float, power: float) -> float:
  """(1 / L) sum_l E[(|A_l| / (tau + 1e-6))^p] over the tokens that count, in float64."""
  blocks = [np.mean(((np.abs(x) / (tau + 1e-6)) ** power)[weights_BxT > 0])
            for x in x_LxBxTxD.astype(np.float64)]
  return float(np.mean(blocks))


@pytest.mark.parametrize("tau, power", ((3.0, 4.0), (0.5, 2.5)))
def test_the_formula(tau: float, power: float) -> None:
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 2, 5, 7)).astype(np.float32) * 4
  weights = np.array([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1]], np.float32)
  train = TrainConfig(tweo_weight=0.01, tweo_threshold=tau, tweo_power=power)
  of_block = tweo.penalty(train, jnp.asarray(weights))
  assert of_block is not None
  found = np.mean([of_block(block) for block in x]) / weights.sum()
  assert found == pytest.approx(plain(x, weights, tau, power), rel=1e-5)
  gradient = jax.grad(lambda block: of_block(block) / weights.sum())(x[0].astype(jnp.bfloat16))
  exact = power / 7 / weights.sum() * np.abs(x[0]) ** (power - 1) * np.sign(x[0]) / tau ** power
  np.testing.assert_allclose(gradient.astype(np.float32), exact * weights[..., None], rtol=0.03)
  assert tweo.penalty(TrainConfig(), jnp.asarray(weights)) is None


def test_it_is_of_every_block_s_output_and_not_in_the_loss(make_config: MakeConfig) -> None:
  """Two micro-batches log what NumPy makes of the streams; the loss stays."""
  config = make_config(**TERM, train__grad_accumulation=2)
  _, history = run(config, 1)
  network = build_network(config)
  params = network.init(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, 64, (8, 17)).astype(np.int32)

  @jax.jit
  def outputs(params: Any) -> Any:
    """Streams behind the blocks, the last one unnormed; the loss; the term, and its gradient."""
    def observe(site: str, x: jax.Array, first: jax.Array) -> Any:
      return {"x": x} if site in ("resid_pre", "final") else None

    logits, seen = network.apply(params, tokens[:, :-1], observe=observe)
    log_p = jax.nn.log_softmax(logits)
    loss = -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], -1))

    def term(params: Any) -> jax.Array:
      of_block = tweo.penalty(config.train, jnp.ones((8, 16)))
      found = network.stream(params, tokens[:, :-1], penalise=of_block)[2]
      assert set(found) == {PENALTY}
      return jnp.mean(found[PENALTY]) / tokens[:, 1:].size

    return jnp.concatenate([seen["resid_pre"]["x"][1:], seen["final"]["x"]]), loss, jax.grad(term)(
        params)

  x, loss, gradient = outputs(params)
  tau, power = config.train.tweo_threshold, config.train.tweo_power
  wanted = plain(np.asarray(x), np.ones((8, 16)), tau, power)
  assert history[0]["tweo"] == pytest.approx(wanted, rel=1e-5)
  assert history[0]["loss"] == pytest.approx(float(loss), rel=1e-5)

  # The last matrix adds to the last block's output alone, by the derivative of |x|^p.
  slope = power * np.abs(x[-1]) ** (power - 1) * np.sign(x[-1]) / tau ** power / x[-1].size / 2
  bumped = jax.tree.map(np.array, params)
  bumped["stacks"]["0"]["mlp"]["down"]["kernel"][1, 3, 5] += 1e-2
  moved = np.asarray(outputs(bumped)[0][-1] - x[-1]) / 1e-2
  assert gradient["stacks"]["0"]["mlp"]["down"]["kernel"][1, 3, 5] == pytest.approx(
      float(np.sum(slope * moved)), rel=1e-3)


DROPPING = {**TERM, "model__dropout": 0.2, "model__embedding_dropout": 0.1,
            "model__attention_dropout": 0.3}
OTHERWISE = {"model__scan_layers": False, "model__remat": "full", "mesh__data": 2, "mesh__fsdp": 2,
             "mesh__tensor": 2}


def test_what_is_dropped_is_a_function_of_key_and_place(make_config: MakeConfig) -> None:
  """Unrolled and on eight devices as in a scan on one; another step's key drops otherwise."""
  tokens = np.random.default_rng(0).integers(0, 64, (8, 16))
  found = []
  for fields in ({}, OTHERWISE):
    config = make_config(**DROPPING, **fields)
    network = build_network(config)
    params = network.init(jax.random.key(0))
    of_block = tweo.penalty(config.train, jnp.ones((8, 16)))

    def forward(params: Any, key: jax.Array) -> Any:
      x_BxTxD, _, sums = network.stream(params, tokens, dropout_key=key, penalise=of_block)
      return x_BxTxD, sums[PENALTY]

    with jax.set_mesh(make_mesh(config)):
      run_once = jax.jit(forward)
      found.append(jax.device_get([run_once(params, jax.random.key(i)) for i in (1, 2)]))
  for (x, sums), (other_x, other_sums) in zip(*found, strict=True):
    np.testing.assert_allclose(x, other_x, atol=1e-5)
    np.testing.assert_allclose(sums, other_sums, rtol=1e-5)
  assert np.abs(found[0][0][0] - found[0][1][0]).max() > 0.1


@pytest.mark.slow
def test_scan_remat_mesh_and_telemetry_train_the_same(make_config: MakeConfig) -> None:
  state, history = run(make_config(**DROPPING), 2)
  other, again = run(make_config(**{**DROPPING, **OTHERWISE, "telemetry__level": "full"}), 2)
  assert again[0]["telemetry"]["final"]["kurtosis"] > 0
  for a, b in zip(history, again, strict=True):
    for name in ("loss", "tweo", "grad_norm"):
      np.testing.assert_allclose(a[name], b[name], rtol=2e-5, err_msg=name)
  theirs = named_leaves(other["params"])
  for name, leaf in named_leaves(state["params"]).items():
    np.testing.assert_allclose(leaf, theirs[name], atol=2e-5, err_msg=name)
