"""Figures of what `measure` was asked for, whatever it was: one number a layer, or several."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from of_jax.config import Config, declared_metrics
from of_jax.report import panel_plots, panels
from of_jax.storage.run_directory import plain

# How measure.json may hold a metric of two layers.
FORMS: dict[str, Any] = {
    "numbers": [1.0, 2.0], "array": np.array([1.0, 2.0]), "undefined": [None, 2.0],
    "nan": np.array([math.nan, 2.0]), "none defined": [None, None],
    "several": [[1.0, 2.0], [3.0, 4.0]], "array of several": np.ones((2, 3)),
    "of two lengths": [[1.0], [2.0, 3.0]], "one layer has none": [None, [1.0, 2.0]],
    "one number": 3.0}
NOT_DRAWN = [*FORMS][5:]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_metric_in_every_form(form: str, steps: int, tmp_path: Path) -> None:
  """Alone, where it would be drawn, and beside another."""
  names = [*declared_metrics.metrics(), "mine"]
  for chosen in (names, ["top_neurons"], ["mine"], ["kurtosis"]):
    telemetry = {"resid_pre": {name: FORMS[form] for name in chosen}}
    measured = [{"step": step, "loss": 4.0, "telemetry": telemetry} for step in range(steps)]
    for one in (measured, json.loads(json.dumps(plain(measured)))):
      one[0]["after_intervention"] = {"telemetry": one[0]["telemetry"]}
      drawn = panels.of_measurements(one)
      assert bool(drawn) == (form not in NOT_DRAWN), chosen
      if chosen == ["mine"]:
        panel_plots.save_all(one, {}, tmp_path)


@pytest.mark.slow
def test_what_is_measured_as_several_numbers_is_drawn(
    make_config: Callable[..., Config], tmp_path: Path) -> None:
  """Each metric that has a list a layer is asked for alone, of one checkpoint and of two."""
  from of_jax.analysis import evaluation, replay
  from of_jax.train import train
  config = make_config(model__depth=2, telemetry__level="off", train__steps=2)
  train(config, tmp_path / "run", lambda line: None)
  model = replay.restore(tmp_path / "run", 2)
  batches = list(model.batches(count=1))
  everything = evaluation.measure(model, batches)["telemetry"]
  several = {name for metrics in everything.values() for name, layers in metrics.items()
             if np.ndim(layers) > 1 or any(isinstance(layer, list) for layer in layers)}
  assert "top_neurons" in several
  for name in several:
    found = {**evaluation.measure(model, batches, (), (name,)), "step": 2}
    panel_plots.save_all([found], {}, tmp_path)
    panel_plots.save_all([found, {**found, "step": 3}], {}, tmp_path)
