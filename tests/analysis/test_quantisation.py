"""A quantised model: 16 bits cost nothing, and the integer path is the simulated one."""

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from of_jax.analysis import quantisation
from of_jax.analysis.evaluation import network_of
from of_jax.config import Config
from of_jax.quantise.scheme import SITES, Scheme

BY_TOKEN = Scheme(weight_granularity="channel", weight_range="min_max",
                  activation_granularity="token", activation_range="min_max", sites=SITES)


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

  fine = loss(dataclasses.replace(BY_TOKEN, weight_bits=16, activation_bits=16))
  assert abs(math.exp(fine - plain) - 1) < 1e-3 and fine != plain
  simulated = loss(BY_TOKEN)
  integer = loss(dataclasses.replace(BY_TOKEN, arithmetic="integer"))
  assert abs(integer - simulated) < 1e-5 < abs(simulated - plain)
