"""Linear attention, EvoNorm and minimal models are quantised at the sites that they have."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.analysis import quantisation
from of_jax.analysis.evaluation import network_of
from of_jax.config import Config
from of_jax.quantise.rotation import rotate
from of_jax.quantise.scheme import PRESETS, preset_scheme

FORMS: dict[str, dict[str, Any]] = {
    "linear": {"model__attention": "linear", "model__linear_positions": "all",
               "model__positions": "none", "model__norm": "srms"},
    "symmetric": {"model__mlp": "none", "model__attention_keys": "queries"},
    "collapsed": {"model__mlp": "none", "model__heads": 1, "model__attention_keys": "input",
                  "model__attention_values": "input"},
    "evonorm": {"model__mlp": "evonorm_s0"}}


def model_of(config: Config) -> tuple[Any, list[dict[str, np.ndarray]]]:
  params = network_of(config).init(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, 64, (8, 17)).astype(np.int32)
  return SimpleNamespace(config=config, params=jax.device_get(params)), [{
      "inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 16), np.float32)}]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("form", FORMS)
def test_sixteen_bits_cost_nothing_and_four_do(form: str, preset: str,
                                               make_config: Callable[..., Config]) -> None:
  model, batches = model_of(make_config(**FORMS[form], model__depth=2, model__init_std=0.2))
  plain = quantisation.plain_loss(model, batches)[0]
  sites = quantisation.sites_of(model.config, preset)
  losses = []
  for bits in (16, 4):
    scheme = preset_scheme(preset, weight_bits=bits, activation_bits=bits, sites=sites,
                           weight_range="min_max", activation_range="min_max")
    losses.append(quantisation.loss(
        model, batches, scheme, quantisation.calibrate(model, batches, scheme)))
  assert abs(losses[0] - plain) < 2e-3 < abs(losses[1] - plain)


@pytest.mark.slow
@pytest.mark.parametrize("form", ("linear", "symmetric", "evonorm"))
def test_a_rotated_stream_is_the_same_function(form: str, make_config: Callable[..., Config]
                                               ) -> None:
  model, batches = model_of(make_config(**FORMS[form], model__depth=2))
  params, config = rotate(model.params, model.config)
  rotated = SimpleNamespace(config=config, params=params)
  np.testing.assert_allclose(quantisation.plain_loss(rotated, batches)[0],
                             quantisation.plain_loss(model, batches)[0], atol=1e-5)
