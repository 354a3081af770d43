"""Data of the page's interactive figures. Enters: runs. Leaves: an object for JSON, thinned so
that a page of many long runs stays quick on a phone.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from of_jax.analysis import registry
from of_jax.analysis.curves import Floats
from of_jax.analysis.runs import SITE, Run, loss_unit, own_metrics
from of_jax.config import declared_metrics
from of_jax.errors import UserError
from of_jax.report import answer, metrics, panels, plots, series
from of_jax.report.panel import Panel

_BUDGET = 100_000
# Numbers of all other curves, and how many points each has however many there are.
_BUDGET_OF_OTHERS, _FEWEST = 90_000, 10


def page_data(runs: Mapping[str, Run], study: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Collects what the page draws, as an object for JSON.

  Args:
    study: what study.json holds, if the runs are of one.

  Returns:
    `metrics`: id -> name, axis, log, largest, formula (HTML); `loss_unit`; `points` of a curve at
    most; `runs`, each with name, group, condition, seed, colour, dash, the curves `train` and
    `eval` of its loss, and `metrics`: id -> steps, `layers` (a curve a layer) and, for metrics of
    the stream alone, `line` over layers; `analyses`, each with run, title and `panels` as
    of_jax.report.panel.Panel has them; `claims`: id -> the figures that decide it; `lead`, what
    is drawn on top: `intervals`, such figures, and `metric` with loss of `runs`, by their places.
  """
  depth = max(run.config.model.depth for run in runs.values())
  points = _BUDGET // (len(runs) * depth * len(metrics.STREAM))
  points = max(60, min(300, points))
  others = _others(runs)
  fewer = _BUDGET_OF_OTHERS // (len(runs) * depth * max(len(others), 1))
  fewer = max(_FEWEST, min(points, fewer))
  shown = [_run(item, points, others, fewer) for item in series.arrange(runs)]
  present = {m for run in shown for m in run["metrics"]}
  about = {**_about_stream(), **{key: _about(runs, *where) for key, where in others.items()}}
  return {"metrics": {m: v for m, v in about.items() if m in present}, "runs": shown,
          "lead": _lead(runs, study), "claims": of_claims(study),
          "points": points, "loss_unit": loss_unit(runs), "analyses": [
              {"run": run.name, "title": title, "panels": [_panel(panel) for panel in shown]}
              for run in runs.values() for title, shown in panels.of_run(run).items()]}


def of_claims(study: Mapping[str, Any] | None) -> dict[str, Any]:
  """Makes the figures that decide each claim of a study, by its id."""
  return {claim["id"]: answer.intervals(claim) for claim in (study or {}).get("claims", [])}


def _lead(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> dict[str, Any]:
  leading = answer.leading(study) if study is not None else None
  items, condition = plots.headline(runs)
  places = {run.name: place for place, run in enumerate(runs.values())}
  named = str((study or {}).get("figure") or "kurtosis")
  analysis = registry.ANALYSES.get(named)
  return {"metric": "kurtosis" if analysis else named, "condition": condition,
          "analysis": analysis.title if analysis else "",
          "runs": [places[item.run.name] for item in items if not item.run.is_loaded],
          "intervals": answer.intervals(leading) if leading is not None else []}


def _others(runs: Mapping[str, Run]) -> dict[str, tuple[str, str]]:
  """Finds what else was measured: "METRIC at SITE" -> (site, metric), users' own first.
  """
  measured_at = {
      (site, metric) for run in runs.values() for curves in (run.train, run.eval)
      for site, found in curves.telemetry.items() for metric, measured in found.items()
      if not (site == SITE and metric in metrics.STREAM) and np.isfinite(measured.values).any()}
  return {f"{metric} at {site}": (site, metric) for site, metric in sorted(
      measured_at, key=lambda where: (
          metrics.base(where[1]) in declared_metrics.metrics(), where[::-1]))}


def _about_stream() -> dict[str, dict[str, Any]]:
  """Metric of the stream -> name, axis, whether it is logarithmic and the largest, formula."""
  return {metric: {"name": shown.name, "axis": shown.axis, "log": shown.log,
                   "largest": shown.largest, "formula": metrics.as_html(metrics.formula(metric))}
          for metric, shown in metrics.STREAM.items()}


def _about(runs: Mapping[str, Run], site: str, metric: str) -> dict[str, Any]:
  """Describes a metric at a site as `_about_stream` does, from its family or the user's file."""
  own: dict[str, declared_metrics.Metric] = {}
  for text in {text for run in runs.values() for text in own_metrics(run.path, run.config)}:
    try:
      own |= {one.id: one for one in declared_metrics.user_family(text).metrics}
    except UserError:
      pass  # The file is gone: its metric has a name, and no formula.
  declared = {**own, **declared_metrics.metrics()}.get(metrics.base(metric))
  measured = [run.measured(metric, site).values for run in runs.values()]
  values = np.concatenate([each[np.isfinite(each)] for each in measured])
  spread = values.size > 0 and values.min() > 0 and values.max() > 100 * values.min()
  unit = declared.unit if declared is not None else ""
  return {"name": f"{metric} at {site}", "axis": f"{metric} ({unit})" if unit else metric,
          "log": bool(spread), "largest": False,
          "formula": metrics.as_html(metrics.formula(metric, own))}


def _panel(panel: Panel) -> dict[str, Any]:
  value = dataclasses.asdict(panel)
  value["note"] = metrics.as_html(panel.definition)
  for line in value["lines"]:
    for name in ("x", "y", "sizes"):
      if line[name] is not None:
        line[name] = [None if v is None else float(f"{v:.4g}") if isinstance(v, float) else v
                      for v in line[name]]
  return value


def _run(item: series.Series, points: int, others: Mapping[str, tuple[str, str]], fewer: int
         ) -> dict[str, Any]:
  run = item.run
  curves = {}
  for metric, about in metrics.STREAM.items():
    measured = run.measured(metric)
    if not measured.steps.size:
      continue
    largest = about.largest
    steps, values = series.thin(measured.steps, measured.values, points, largest)
    curves[metric] = {"steps": steps.tolist(), "layers": [_short(c) for c in values.T],
                       "line": _short(series.over_layers(values, largest))}
  for key, (site, metric) in others.items():
    measured = run.measured(metric, site)
    if measured.steps.size:
      steps, values = series.thin(measured.steps, measured.values, fewer)
      curves[key] = {"steps": steps.tolist(), "layers": [_short(c) for c in values.T]}
  steps, loss = series.thin(run.train.steps, run.train.loss, points)
  return {
      "name": run.name, "group": item.group, "condition": item.condition, "seed": item.seed,
      "colour": item.colour, "dash": item.dash, "label": item.label,
      "end": item.label if item.is_alike else "", "metrics": curves,
      "untrained_loss": (1 / (run.config.data.classes or 1) if run.reads_images
                         else math.log(run.config.data.vocab_size)),
      "train": {"steps": steps.tolist(), "loss": _short(loss)},
      "eval": {"steps": run.eval.steps.tolist(), "loss": _short(run.eval.loss)}}


def _short(values: Floats) -> list[float | None]:
  """Four digits are more than a screen shows; null is what a plot leaves out."""
  return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values.tolist()]
