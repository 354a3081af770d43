"""What the page's interactive figures draw. Enters: runs. Leaves: an object for JSON, thinned so
that a page of many long runs stays quick on a phone.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from of_jax.analysis import panels, series
from of_jax.analysis.runs import Floats, Run, loss_unit

# Name, formula (as HTML), log axis, and whether a stretch of steps keeps its largest value.
_METRICS: dict[str, dict[str, Any]] = {
    "kurtosis": {
        "name": "kurtosis", "axis": "kurtosis (1 to width)", "log": True, "largest": True,
        "formula": "mean<sub>j</sub> s<sub>j</sub><sup>4</sup> / (mean<sub>j</sub> "
                   "s<sub>j</sub><sup>2</sup>)<sup>2</sup>, s<sub>j</sub> = root mean square of "
                   "neuron j over tokens; from 1 to the width"},
    "kurtosis_no_first": {
        "name": "kurtosis without position 0", "axis": "kurtosis (1 to width)", "log": True,
        "largest": True, "formula": "the same, leaving out the first token of every window"},
    "kurtosis_centred": {
        "name": "kurtosis, centred", "axis": "kurtosis (1 to width)", "log": True,
        "largest": True, "formula": "the same after subtracting each token's mean"},
    "mmr": {
        "name": "MMR", "axis": "max over median (from 1)", "log": True, "largest": True,
        "formula": "mean over tokens of max<sub>j</sub> |x<sub>j</sub>| / median<sub>j</sub> "
                   "|x<sub>j</sub>|; 1 or more"},
    "mmr_no_first": {
        "name": "MMR without position 0", "axis": "max over median (from 1)", "log": True,
        "largest": True, "formula": "the same, leaving out the first token of every window"},
    "input_correlation": {
        "name": "input correlation", "axis": "correlation", "log": False, "largest": False,
        "formula": "mean off-diagonal of X X<sup>T</sup> / width, X scaled to mean square 1; "
                   "1 means that all tokens look alike (poor signal propagation)"},
    "rms": {
        "name": "RMS", "axis": "root mean square", "log": True, "largest": False,
        "formula": "root mean square of the stream"},
}
_BUDGET = 250_000


def page_data(runs: Mapping[str, Run]) -> dict[str, Any]:
  """{"metrics", "loss_unit", "points", "runs": [{"name", "group", "condition", "seed", "colour",
  "dash", "train", "eval", "metrics": {id: {"steps", "layers": [a curve a layer], "line": over
  layers}}}], "analyses": [{"run", "title", "panels": as of_jax.analysis.panels.Panel}]}."""
  depth = max(run.config.model.depth for run in runs.values())
  points = _BUDGET // (len(runs) * depth * len(_METRICS))
  points = max(60, min(300, points))
  shown = [_run(item, points) for item in series.arrange(runs)]
  present = {m for run in shown for m in run["metrics"]}
  return {"metrics": {m: v for m, v in _METRICS.items() if m in present}, "runs": shown,
          "points": points, "loss_unit": loss_unit(runs), "analyses": [
              {"run": run.name, "title": title, "panels": [_panel(panel) for panel in shown]}
              for run in runs.values() for title, shown in panels.of_run(run).items()]}


def _panel(panel: panels.Panel) -> dict[str, Any]:
  value = dataclasses.asdict(panel)
  for line in value["lines"]:
    for name in ("x", "y", "sizes"):
      if line[name] is not None:
        line[name] = [None if v is None else float(f"{v:.4g}") if isinstance(v, float) else v
                      for v in line[name]]
  return value


def _run(item: series.Series, points: int) -> dict[str, Any]:
  run = item.run
  metrics = {}
  for metric, about in _METRICS.items():
    measured = run.measured(metric)
    if not measured.steps.size:
      continue
    largest = bool(about["largest"])
    steps, values = series.thin(measured.steps, measured.values, points, largest)
    metrics[metric] = {"steps": steps.tolist(), "layers": [_short(c) for c in values.T],
                       "line": _short(series.over_layers(values, largest))}
  steps, loss = series.thin(run.train.steps, run.train.loss, points)
  return {
      "name": run.name, "group": item.group, "condition": item.condition, "seed": item.seed,
      "colour": item.colour, "dash": item.dash, "metrics": metrics,
      "untrained_loss": (1 / (run.config.data.classes or 1) if run.reads_images
                         else math.log(run.config.data.vocab_size)),
      "train": {"steps": steps.tolist(), "loss": _short(loss)},
      "eval": {"steps": run.eval.steps.tolist(), "loss": _short(run.eval.loss)}}


def _short(values: Floats) -> list[float | None]:
  """Four digits are more than a screen shows; null is what a plot leaves out."""
  return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values.tolist()]
