"""Errors of forecasts of sizes that a fit has not seen, by which laws are compared.

Leave-one-size-out asks how well a law goes between sizes; rolling hold-out, where each size is
forecast from all smaller ones, how well it goes on to the next. An error is |log(forecast / mean of
the runs of that size, in logs)|.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from of_jax.errors import UserError
from of_jax.scaling.jets import Floats
from of_jax.scaling.law import NAMED, Law, make
from of_jax.scaling.solve import Data
from of_jax.scaling.starts import Fit, fit

# More sizes than these are put together, neighbours first.
_MOST = 10


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Errors of one law: a pair (size, error) each. `rms` of none is NaN."""

  leave_one_size_out: tuple[tuple[float, float], ...]
  rolling: tuple[tuple[float, float], ...]

  def as_json(self) -> dict[str, Any]:
    """Gives what fit.json holds of it."""
    return {name: {"rms_log_error": rms(pairs),
                   "sizes": [{"size": size, "log_error": error} for size, error in pairs]}
            for name, pairs in (("leave_one_size_out", self.leave_one_size_out),
                                ("rolling", self.rolling))}


def rms(pairs: Sequence[tuple[float, float]]) -> float:
  """Root mean square of errors; NaN without any."""
  if not pairs:
    return math.nan
  return math.sqrt(sum(error ** 2 for _, error in pairs) / len(pairs))


def subset(data: Data, keep: npt.NDArray[np.bool_]) -> Data:
  """Takes some of the points."""
  return Data({name: values[keep] for name, values in data.columns.items()},
              data.log_y[keep], data.noise[keep], data.weights[keep])


def by_size(size: Floats) -> list[npt.NDArray[np.bool_]]:
  """Splits points by size, in order; at most ten groups."""
  values = np.unique(size)
  parts = np.array_split(values, _MOST) if values.size > _MOST else [values[i:i + 1]
                                                                     for i in range(values.size)]
  return [np.isin(size, part) for part in parts]


def errors(law: Law, data: Data, size: Floats, delta: float) -> HeldOut:
  """Fits a law without each size in turn, and to the sizes below each."""
  groups = by_size(size)
  out: list[tuple[float, float]] = []
  rolling: list[tuple[float, float]] = []
  for k, group in enumerate(groups):
    at = float(np.exp(np.log(size[group]).mean()))
    for pairs, keep in ((out, ~group), (rolling, np.any(groups[:k], axis=0) if k else None)):
      if keep is not None and _enough(law, data, keep, size):
        fitted = fit(law, subset(data, keep), delta)
        pairs.append((at, _error(fitted, subset(data, group))))
  return HeldOut(tuple(out), tuple(rolling))


def _enough(law: Law, data: Data, keep: npt.NDArray[np.bool_], size: Floats) -> bool:
  count = len(law.parameters)
  table = np.stack([data.columns[name][keep] for name in law.formula.variables], 1)
  return keep.sum() > count and len(np.unique(table, axis=0)) >= max(count, 2)


def _error(fitted: Fit, seen: Data) -> float:
  with np.errstate(all="ignore"):
    forecast = np.log(fitted.law.formula.value(fitted.parameters, seen.columns))
  error = abs(float((forecast - seen.log_y).mean()))
  return error if math.isfinite(error) else math.inf


def rivals(own: Law, data: Data, asked: Sequence[str] | None, y: str) -> list[Law]:
  """Lists the laws to compare, the own one first: those asked for, or all named that may apply."""
  x = own.formula.variables
  found = [own]
  for text in asked if asked is not None else NAMED:
    try:
      law = own if text == own.name else make(
          text, data.columns, x if text in NAMED and len(x) == 1 else ())
    except UserError:
      if asked is not None:
        raise
      continue
    used = law.formula.variables
    if asked is None and (not {*used} <= {*x} or not _may(law, data, y)):
      continue
    if all(law.formula.text != other.formula.text for other in found):
      found.append(law)
  return found


def _may(law: Law, data: Data, y: str) -> bool:
  """Tells whether a named law may describe the points, and can be held to sizes it did not see."""
  if law.name == "saturating":
    values = np.exp(data.log_y)
    return "kurt" in y.lower() and bool(
        ((values > 1) & (values < data.columns["width"])).all())
  sizes = len(np.unique(np.stack([data.columns[x] for x in law.formula.variables]), axis=1).T)
  return data.log_y.size > len(law.parameters) and sizes > len(law.parameters) + 1


def compare(laws: Sequence[Law], data: Data, size: Floats, delta: float) -> list[dict[str, Any]]:
  """Compares laws by held-out error: the rolling one first, where all have it. Best first."""
  rows: list[dict[str, Any]] = []
  for law in laws:
    if data.log_y.size <= len(law.parameters):
      continue
    fitted, held = fit(law, data, delta), errors(law, data, size, delta)
    rows.append({"law": law.name, "formula": law.formula.text, "parameters": {
        name: float(value) for name, value in zip(law.parameters, fitted.parameters, strict=True)},
        "loss": fitted.loss, "rms_log_residual": fitted.scale, **held.as_json()})
  # Sizes that every law could forecast, so that all are judged by the same.
  for kind in ("leave_one_size_out", "rolling"):
    seen = [{p["size"] for p in row[kind]["sizes"]} for row in rows if row[kind]["sizes"]]
    shared = set.intersection(*seen) if seen else set()
    for row in rows:
      pairs = [(p["size"], p["log_error"]) for p in row[kind]["sizes"] if p["size"] in shared]
      row[kind]["rms_log_error_shared"] = rms(pairs)

  def order(row: dict[str, Any]) -> tuple[float, float]:
    return tuple(math.inf if math.isnan(e) else e for e in (
        row["rolling"]["rms_log_error_shared"],
        row["leave_one_size_out"]["rms_log_error_shared"]))  # type: ignore[return-value]
  return sorted(rows, key=order)
