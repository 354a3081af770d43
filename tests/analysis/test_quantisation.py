"""A quantised model: 16 bits cost nothing, and the integer path is the simulated one."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from of_jax.analysis import quantisation, replay
from of_jax.analysis.evaluation import network_of
from of_jax.config import Config
from of_jax.quantise.scheme import DEFAULT_SITES, PRESETS, SITES, Scheme, preset_scheme
from of_jax.train import train

BY_TOKEN = Scheme(weight_granularity="channel", weight_range="min_max",
                  activation_granularity="token", activation_range="min_max", sites=SITES)


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_that_fill_a_batch_have_no_range(preset: str, make_config: Callable[..., Config]
                                              ) -> None:
  """Token 0, which fills them, is by far the largest; the last token of a window counts."""
  config = make_config(model__depth=1, model__positions="rotary")
  params = network_of(config).init(jax.random.key(0))
  for token, factor in (0, 100), (1, 10):
    params["embedding"]["token"] = params["embedding"]["token"].at[token].multiply(factor)
  model = SimpleNamespace(config=config, params=params)
  windows = np.random.default_rng(0).integers(2, 64, (5, 12))
  windows[:, -1] = 1
  short = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=3))
  batches = replay.token_batches(short, windows, "windows")
  assert [batch["measured"].any(1).sum() for batch in batches] == [3, 2]
  whole = [{name: rows[:2] for name, rows in batch.items()} for batch in batches]
  scheme = preset_scheme(preset, activation_range="min_max")
  found, expected = (quantisation.calibrate(model, given, scheme).ranges["resid_pre"]
                     for given in ([batches[1]], [whole[1]]))
  np.testing.assert_array_equal(found, expected)
  largest = config.model.embedding_scale * np.abs(params["embedding"]["token"]).max(1)
  # bondarenko has rounded the table, by the bound of token 0.
  np.testing.assert_allclose(np.max(np.abs(found)), largest[1], rtol=0.05)
  result = quantisation.plain_loss(model, batches)[2]
  assert result == {"num_tokens": 5 * 11, "num_tokens_measured": 5 * 12}


@pytest.mark.slow
def test_bits_and_arithmetics(make_config: Callable[..., Config]) -> None:
  config = make_config(model__depth=2)
  params = network_of(config).init(jax.random.key(0))
  # Larger matrices than at init, so that what they do is worth rounding.
  model = SimpleNamespace(config=config, params=jax.tree.map(
      lambda leaf: leaf * 8 if leaf.ndim > 2 else leaf, params))
  tokens = np.random.default_rng(0).integers(0, 64, (8, 17)).astype(np.int32)
  batches = [{"inputs": tokens[:, :-1], "targets": tokens[:, 1:],
              "weights": np.ones((8, 16), np.float32)}]
  plain = quantisation.plain_loss(model, batches)[0]

  def loss(scheme: Scheme) -> float:
    return quantisation.loss(model, batches, scheme, quantisation.calibrate(model, [], scheme))

  fine, coarser = (loss(dataclasses.replace(BY_TOKEN, weight_bits=bits, activation_bits=bits))
                   for bits in (16, 12))
  assert abs(math.exp(fine - plain) - 1) < 1e-3 and abs(math.exp(coarser - plain) - 1) < 1e-3
  # At 16 bits the loss may be the same float32.
  assert coarser != plain
  simulated = loss(BY_TOKEN)
  integer = loss(dataclasses.replace(BY_TOKEN, arithmetic="integer"))
  assert abs(integer - simulated) < 1e-5 < abs(simulated - plain)


@pytest.mark.slow
def test_without_outliers_eight_bits_cost_less_than_a_percent(make_config: Callable[..., Config],
                                                              tmp_path: Path) -> None:
  """Of a trained model, by every arithmetic and rotated; four bits cost more."""
  train(make_config(model__block="op", train__steps=80, train__eval_every=80,
                    train__checkpoint_every=80, optim__learning_rate=1e-2), tmp_path,
        lambda line: None)
  model = replay.restore(tmp_path)
  batches = model.batches()
  eight = dataclasses.replace(BY_TOKEN, sites=DEFAULT_SITES)
  found = quantisation.quantise(model, batches, [], eight)
  # It has learnt: tokens alone would give log 64 = 4.16.
  assert found["kurtosis"] < 3 and found["loss"] < 3.5

  def cost(scheme: Scheme) -> float:
    after = quantisation.quantise(model, batches, [], scheme)["perplexity_quantised"]["mean"]
    return abs(after / found["perplexity"] - 1)

  by_eight = abs(found["perplexity_quantised"]["mean"] / found["perplexity"] - 1)
  assert 0 < by_eight < 0.01
  assert cost(dataclasses.replace(eight, arithmetic="integer")) < 0.01
  assert cost(dataclasses.replace(eight, hadamard=True)) < 0.01
  assert cost(dataclasses.replace(eight, weight_bits=16, activation_bits=16)) < 1e-3
  assert cost(dataclasses.replace(eight, weight_bits=4, activation_bits=4)) > 2 * by_eight
