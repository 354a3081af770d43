"""Curves of a run: what was logged, by step. Enters: the lines of a file. Leaves: arrays."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from of_jax.config.declare import LARGEST_WHOLE
from of_jax.errors import UserError
from of_jax.storage.run_directory import METRICS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Measured:
  """A metric at a site: `values` (steps x layers) at `steps`; NaN where undefined."""

  steps: Ints
  values: Floats


@dataclasses.dataclass(frozen=True)
class Curves:
  """Curves of one split, in order of step. Absent numbers are NaN.

  What is measured of the optimiser stands in `telemetry` at the site "ROLE parameters".
  """

  steps: Ints
  loss: Floats
  accuracy: Floats
  learning_rate: Floats
  grad_norm: Floats
  telemetry: Mapping[str, Mapping[str, Measured]]


def number(value: Any) -> float:
  """Reads a number of a record; NaN where it is null, no number, or too large for one."""
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  try:
    return float(value) if is_number else math.nan
  except OverflowError:
    return math.nan


def column(lines: Iterable[Line], key: str) -> Floats:
  """Reads one number of each record."""
  return np.array([number(line.get(key)) for line in lines], np.float64)


def by_step(lines: Iterable[Line]) -> dict[tuple[int, str], Line]:
  """Finds the record of each (step, split), in order of step.

  A resumed run may have logged a step twice: the later line belongs to the run that went on.

  Raises:
    UserError: a record without a step.
  """
  found = {(_step(line), str(line.get("split", "train"))): line for line in lines}
  return dict(sorted(found.items(), key=lambda item: item[0][0]))


def sites(line: Line) -> dict[str, Mapping[str, Any]]:
  """Lists what a record has of each site, and of the optimiser at "ROLE parameters"."""
  roles = (line.get("optimizer") or {}).items()
  return {**(line.get("telemetry") or {}), **{f"{role} parameters": of for role, of in roles}}


def curves(records: Mapping[tuple[int, str], Line], split: str) -> Curves:
  """Makes the curves of one split of what `by_step` found."""
  rows = {step: line for (step, of), line in records.items() if of == split}
  cells: dict[str, dict[str, list[tuple[int, list[float]]]]] = {}
  for step, row in rows.items():
    for site, metrics in sites(row).items():
      for metric, values in metrics.items():
        values = values if isinstance(values, list) else [values]
        # Metrics that name neurons hold a list a layer; they are no curve.
        if not any(isinstance(v, list) for v in values):
          cells.setdefault(site, {}).setdefault(metric, []).append(
              (step, [number(v) for v in values]))
  loss, accuracy, learning_rate, grad_norm = (
      column(rows.values(), key) for key in ("loss", "accuracy", "learning_rate", "grad_norm"))
  return Curves(
      np.array([*rows], np.int64), loss, accuracy, learning_rate, grad_norm,
      {site: {metric: _measured(c) for metric, c in metrics.items()}
       for site, metrics in cells.items()})


def _step(line: Line) -> int:
  step = line.get("step")
  if type(step) is not int or not 0 <= step <= LARGEST_WHOLE:
    raise UserError(f"{METRICS}: a line whose step is {str(step)[:40]}")
  return step


def _measured(cells: list[tuple[int, list[float]]]) -> Measured:
  layers = max(len(values) for _, values in cells)
  values = np.full((len(cells), layers), np.nan)
  for row, (_, row_values) in enumerate(cells):
    values[row, :len(row_values)] = row_values
  return Measured(np.array([step for step, _ in cells], np.int64), values)
