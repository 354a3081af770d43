"""measure without arguments is quick: basic metrics of the stream, and all that flags name."""

import pytest
from absl import flags
from absl.testing import flagsaver

from of_jax.analysis import evaluation
from of_jax.commands import measure
from of_jax.config import Config, declared_metrics, resolve


def test_basic_watches_the_stream_in_few_metrics_and_full_everything():
  config = resolve(Config())
  basic, full = (evaluation.watch(config, level=level) for level in ("basic", "full"))
  assert [site for site, _ in basic.plan] == ["resid_pre", "final"]
  assert [site for site, _ in full.plan] == [*declared_metrics.SITES, "attention"]
  assert {"kurtosis", "mmr"} <= basic.ids < full.ids
  assert "top_neurons" in full.ids - basic.ids


@pytest.mark.parametrize("given, level", (
    ({}, "basic"), ({"sites": ["mlp_in"]}, "full"), ({"metrics": ["rms"]}, "full"),
    ({"user_metrics": ["own.py:mine"]}, "full"), ({"level": "full"}, "full"),
    ({"sites": ["mlp_in"], "level": "basic"}, "basic")))
def test_what_is_named_is_measured_in_full_unless_a_level_is(given, level):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["measure"])
  with flagsaver.flagsaver(**given):
    assert measure.chosen_level() == level
