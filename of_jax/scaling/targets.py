"""Targets of laws: one number a run, with how it was aggregated. Enters: a run. Leaves: a number.

A maximum over layers and steps grows with depth, steps and how often is measured, by itself; so a
target says which layer, which steps and which cadence it is made of.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from of_jax.analysis.runs import SITE, Run, read_measurements
from of_jax.errors import UserError, nearest
from of_jax.scaling.jets import Floats
from of_jax.storage.run_directory import read_json

OVER = ("peak", "last", "mean")
_PREFIXES = {"peak": "peak", "final": "last", "last": "last", "mean": "mean"}
# Curves that are no telemetry: name -> (split, attribute).
_CURVES = {"loss": ("eval", "loss"), "train_loss": ("train", "loss"),
           "accuracy": ("eval", "accuracy"), "grad_norm": ("train", "grad_norm")}
_QUANTISED = "quantisation_loss"


@dataclasses.dataclass(frozen=True)
class Target:
  """A number of a run.

  Attributes:
    name: as typed.
    metric: a metric's id, a curve, or a place in a JSON file of the run, as `quantise.perplexity`.
    site: of a metric.
    layer: "largest", "mean", or a layer's index.
    over: of OVER, over the steps logged.
    every: only steps that it divides are read.
  """

  name: str
  metric: str
  site: str
  layer: str
  over: str
  every: int

  @property
  def is_of_file(self) -> bool:
    """Whether it stands in a JSON file that a binary left in the run directory."""
    return "." in self.metric or self.metric == _QUANTISED

  def says(self) -> str:
    """Says in full what it is."""
    if self.metric == _QUANTISED:
      return "nats a token that quantisation costs, by the run's quantise.json"
    if self.is_of_file:
      return f"{self.metric} in the run's JSON file of that name" + (
          f", {self._layers()}, at the last step" if self.metric.startswith("measure.") else "")
    steps = "all logged steps" if self.every == 1 else f"logged steps divisible by {self.every}"
    over = {"peak": f"the largest over {steps}", "last": f"at the last of {steps}",
            "mean": f"mean over {steps}"}[self.over]
    return f"{self.says_curve()}, {over}"

  def says_curve(self) -> str:
    """Says what it is at a step."""
    if self.metric in _CURVES:
      return f"{self.metric} ({_CURVES[self.metric][0]})"
    return f"{self.metric} at {self.site}, {self._layers()}"

  def _layers(self) -> str:
    return {"largest": "the largest over layers", "mean": "mean over layers"}.get(
        self.layer, f"layer {self.layer}")

  def of(self, run: Run) -> float:
    """Reads it off a run; NaN where the run has none."""
    if self.metric == _QUANTISED:
      found = _object(run, "quantise")
      before = _number(found.get("perplexity"))
      after = _number((found.get("perplexity_quantised") or {}).get("mean"))
      return math.log(after / before) if before > 0 and after > 0 else math.nan
    if self.metric.startswith("measure."):
      return self._measured(run)
    if self.is_of_file:
      file, *path = self.metric.split(".")
      value: Any = _object(run, file)
      for part in path:
        value = value.get(part) if isinstance(value, dict) else None
      return _number(value)
    steps, values = self._curve(run)
    if not values.size:
      return math.nan
    kept = steps % self.every == 0
    return _over(self._of_layers(values[kept]), self.over)

  def steps_of(self, run: Run) -> Floats:
    """Lists the steps that enter."""
    if self.is_of_file:
      return np.zeros(0)
    steps, _ = self._curve(run)
    kept: Floats = steps[steps % self.every == 0].astype(np.float64)
    return kept

  def while_training(self) -> "Target | None":
    """Finds the curve that tells early what the target will be: that of the training loss in place
    of the few evaluations, the metric itself else; None of a file that comes after training."""
    if self.is_of_file:
      return None
    metric = "train_loss" if self.metric == "loss" else self.metric
    return dataclasses.replace(self, metric=metric, over="last")

  def by_step(self, run: Run) -> tuple[list[int], list[float]]:
    """Lists the steps that enter, and a value at each."""
    steps, values = self._curve(run)
    kept = steps % self.every == 0
    return steps[kept].tolist(), self._of_layers(values[kept]).tolist()

  def _curve(self, run: Run) -> tuple[Any, Floats]:
    if self.metric in _CURVES:
      split, name = _CURVES[self.metric]
      curves = run.eval if split == "eval" else run.train
      return curves.steps, getattr(curves, name)[:, None]
    measured = run.measured(self.metric, self.site)
    return measured.steps, measured.values

  def _of_layers(self, values: Floats) -> Floats:
    """One value a row."""
    if self.layer not in ("largest", "mean"):
      index = int(self.layer)
      return (values[:, index] if index < values.shape[1]
              else np.full(len(values), np.nan))
    finite = np.isfinite(values)
    some = finite.any(1)
    result = np.full(len(values), np.nan)
    rows = np.where(finite, values, -np.inf if self.layer == "largest" else 0)
    result[some] = (rows.max(1)[some] if self.layer == "largest"
                    else rows.sum(1)[some] / finite.sum(1)[some])
    return result

  def _measured(self, run: Run) -> float:
    found = read_measurements(run)
    if not found:
      return math.nan
    last = max(found, key=lambda one: one["step"])
    name = self.metric.removeprefix("measure.")
    if not isinstance(last.get(name), (dict, list, type(None))):
      return _number(last[name])
    values = (last["telemetry"].get(self.site) or {}).get(name)
    if not isinstance(values, list):
      return _number(values)
    return float(self._of_layers(np.array([[_number(v) for v in values]]))[0])


def parse(y: str, site: str = "", layer: str = "largest", over: str = "", every: int = 1
          ) -> Target:
  """Reads `--y` and the flags beside it.

  Raises:
    UserError: an aggregate that is none, or two of them.
  """
  prefix, _, rest = y.partition("_")
  metric, own = (rest, _PREFIXES[prefix]) if prefix in _PREFIXES and rest else (y, "")
  if own and over and own != over:
    raise UserError(f"--over={over}: --y={y} already says {own}; leave one out")
  if layer not in ("largest", "mean") and not layer.isdigit():
    raise UserError(f"--layer={layer}: must be largest, mean or a layer's number from 0")
  target = Target(y, metric, site or SITE, layer, own or over or "last", every)
  has_layers = metric.startswith("measure.") or not (target.is_of_file or metric in _CURVES)
  for flag, is_set, is_read in (
      ("site", site, has_layers), ("layer", layer != "largest", has_layers),
      ("over", over, not target.is_of_file), ("every", every != 1, not target.is_of_file)):
    if is_set and not is_read:
      raise UserError(f"--{flag}: --y={y} has no {flag}, leave it out" if flag != "every" else
                      f"--every={every}: --y={y} is one number, leave it out")
  return target


def check(target: Target, runs: Sequence[Run]) -> None:
  """Raises UserError if no run has anything of the target's name."""
  if target.is_of_file:
    if all(math.isnan(target.of(run)) for run in runs):
      raise UserError(f"--y={target.name}: no run has it; measure and quantise leave their JSON in "
                      "a run with --out=RUN")
    return
  if any(target._curve(run)[1].size for run in runs):
    return
  sites = sorted({site for run in runs for site in (*run.train.telemetry, *run.eval.telemetry)})
  if target.site not in sites and target.metric not in _CURVES and sites:
    raise UserError(f"--site={target.site}: no run measured there" + nearest(
        target.site, sites, otherwise=f"; there are {', '.join(sites)}"))
  known = [*_CURVES, _QUANTISED, *sorted({
      metric for run in runs for curves in (run.train, run.eval)
      for metric in curves.telemetry.get(target.site, {})})]
  raise UserError(f"--y={target.name}: no run logged {target.metric}" + nearest(
      target.metric, known, otherwise=f"; there are {', '.join(known)}, each also as peak_, last_ "
      "and mean_"))


def notes(target: Target, runs: Iterable[Run]) -> list[str]:
  """Says where aggregates of the runs are not alike."""
  runs = list(runs)
  said: list[str] = []
  if target.is_of_file:
    return said
  cadences = {float(np.median(np.diff(steps))) for run in runs
              if (steps := target.steps_of(run)).size > 1}
  if len(cadences) > 1 and target.over != "last":
    said.append(f"runs were measured at different cadences ({_range(cadences)} steps), and a "
                f"{target.over} depends on it: --every makes them alike")
  depths = {float(run.config.model.depth) for run in runs}
  if len(depths) > 1 and target.layer == "largest" and target.metric not in _CURVES:
    said.append(f"a largest of {_range(depths)} layers grows with depth by itself: --layer=mean or "
                "a layer does not")
  ends = {float(run.steps_done) for run in runs}
  if len(ends) > 1 and target.over == "peak":
    said.append(f"a peak over {_range(ends)} steps grows with the steps by itself: --over=last "
                "does not")
  return said


def _range(values: set[float]) -> str:
  return f"{min(values):g} to {max(values):g}"


def _over(values: Floats, over: str) -> float:
  finite = values[np.isfinite(values)]
  if not finite.size:
    return math.nan
  if over == "last":
    return float(values[-1])
  return float(finite.max() if over == "peak" else finite.mean())


def _object(run: Run, name: str) -> dict[str, Any]:
  path = run.path / f"{name}.json"
  found = read_json(path) if path.is_file() else {}
  return found if isinstance(found, dict) else {}


def _number(value: Any) -> float:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return float(value) if is_number else math.nan
