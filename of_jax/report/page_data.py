"""What the page's interactive figures draw. Enters: runs. Leaves: an object for JSON, thinned so
that a page of many long runs stays quick on a phone.
"""

import dataclasses
import html
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from of_jax.analysis.runs import SITE, Floats, Run, loss_unit, own_metrics
from of_jax.config import declared_metrics
from of_jax.errors import UserError
from of_jax.report import panels, series

# Of the stream: name, formula (as HTML), log axis, and whether a stretch of steps keeps its
# largest value.
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
# Numbers of all other curves, and how many points each has however many there are.
_BUDGET_OF_OTHERS, _FEWEST = 400_000, 10


def page_data(runs: Mapping[str, Run]) -> dict[str, Any]:
  """{"metrics", "loss_unit", "points", "runs": [{"name", "group", "condition", "seed", "colour",
  "dash", "train", "eval", "metrics": {id: {"steps", "layers": [a curve a layer], "line": over
  layers, of these metrics alone}}}], "analyses": [{"run", "title", "panels": as
  of_jax.report.panels.Panel}]}."""
  depth = max(run.config.model.depth for run in runs.values())
  points = _BUDGET // (len(runs) * depth * len(_METRICS))
  points = max(60, min(300, points))
  others = _others(runs)
  fewer = _BUDGET_OF_OTHERS // (len(runs) * depth * max(len(others), 1))
  fewer = max(_FEWEST, min(points, fewer))
  shown = [_run(item, points, others, fewer) for item in series.arrange(runs)]
  present = {m for run in shown for m in run["metrics"]}
  about = {**_METRICS, **{key: _about(runs, *where) for key, where in others.items()}}
  return {"metrics": {m: v for m, v in about.items() if m in present}, "runs": shown,
          "points": points, "loss_unit": loss_unit(runs), "analyses": [
              {"run": run.name, "title": title, "panels": [_panel(panel) for panel in shown]}
              for run in runs.values() for title, shown in panels.of_run(run).items()]}


def _others(runs: Mapping[str, Run]) -> dict[str, tuple[str, str]]:
  """What else was measured, as "METRIC at SITE" -> (site, metric): users' own first, then by name.
  """
  found = {(site, metric) for run in runs.values() for curves in (run.train, run.eval)
           for site, metrics in curves.telemetry.items() for metric, measured in metrics.items()
           if not (site == SITE and metric in _METRICS) and np.isfinite(measured.values).any()}
  return {f"{metric} at {site}": (site, metric) for site, metric in sorted(
      found, key=lambda where: (_base(where[1]) in declared_metrics.metrics(), where[::-1]))}


def _base(metric: str) -> str:
  return metric.removesuffix(declared_metrics.NO_FIRST)


def _about(runs: Mapping[str, Run], site: str, metric: str) -> dict[str, Any]:
  """As in `_METRICS`, from what the registry, or the user's file, says of a metric."""
  own: dict[str, declared_metrics.Metric] = {}
  for text in {text for run in runs.values() for text in own_metrics(run.path, run.config)}:
    try:
      own |= {one.id: one for one in declared_metrics.user_family(text).metrics}
    except UserError:
      pass  # The file is gone: its metric has a name, and no formula.
  declared = {**own, **declared_metrics.metrics()}.get(_base(metric))
  words = [] if declared is None else [declared.formula]
  if declared is not None and declared.range:
    words.append(f"range {declared.range}")
  if metric != _base(metric):
    words.append("leaving out the first token of every window")
  measured = [run.measured(metric, site).values for run in runs.values()]
  values = np.concatenate([each[np.isfinite(each)] for each in measured])
  spread = values.size > 0 and values.min() > 0 and values.max() > 100 * values.min()
  unit = declared.unit if declared is not None else ""
  return {"name": f"{metric} at {site}", "axis": f"{metric} ({unit})" if unit else metric,
          "log": bool(spread), "largest": False,
          "formula": html.escape("; ".join(word for word in words if word))}


def _panel(panel: panels.Panel) -> dict[str, Any]:
  value = dataclasses.asdict(panel)
  for line in value["lines"]:
    for name in ("x", "y", "sizes"):
      if line[name] is not None:
        line[name] = [None if v is None else float(f"{v:.4g}") if isinstance(v, float) else v
                      for v in line[name]]
  return value


def _run(item: series.Series, points: int, others: Mapping[str, tuple[str, str]], fewer: int
         ) -> dict[str, Any]:
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
  for key, (site, metric) in others.items():
    measured = run.measured(metric, site)
    if measured.steps.size:
      steps, values = series.thin(measured.steps, measured.values, fewer)
      metrics[key] = {"steps": steps.tolist(), "layers": [_short(c) for c in values.T]}
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
