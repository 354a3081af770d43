"""Forecasts of new runs by a fit: of sizes held out, of those asked for, and the figure's band."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from of_jax.errors import UserError, nearest
from of_jax.scaling import intervals
from of_jax.scaling.intervals import Interval
from of_jax.scaling.jets import Floats
from of_jax.scaling.law import Law
from of_jax.scaling.noise import Noise
from of_jax.scaling.resample import Resamples
from of_jax.scaling.starts import Fit
from of_jax.scaling.table import Table

LEVELS = (0.5, 0.9)
_BAND = 9


class Context(Protocol):
  """Inputs of a forecast beside the fit."""

  @property
  def noise(self) -> Noise: ...

  @property
  def growth(self) -> float: ...

  @property
  def held(self) -> Table: ...


@dataclasses.dataclass(frozen=True)
class Designs:
  """New runs: distinct designs, and which of them each held-out point, forecast and place of the
  band asks for."""

  columns: list[Mapping[str, Floats]]
  log_sizes: list[float]
  held: list[int]
  asked: list[int]
  band: list[int]


def designs(table: Table, held: Table, law: Law, size: str,
            asked: Sequence[Mapping[str, float]]) -> Designs:
  """Collects what is to be forecast.

  Raises:
    UserError: a forecast that lacks a variable of the law, or has another.
  """
  needed = [*dict.fromkeys([*law.formula.variables, size])]
  found: dict[tuple[float, ...], int] = {}

  def place(values: Mapping[str, float]) -> int:
    return found.setdefault(tuple(values[name] for name in needed), len(found))

  for values in asked:
    for name in values:
      if name not in needed:
        raise UserError(f"--forecast: {name} is no variable of the law"
                        + nearest(name, needed, otherwise=f"; it has {', '.join(needed)}"))
    for name in needed:
      if not values.get(name, 1.0) > 0 or not math.isfinite(values.get(name, 1.0)):
        raise UserError(f"--forecast: {name}={values[name]:g} must be positive and finite")
      if name not in values:
        raise UserError(f"--forecast: needs {name}; give every one of {', '.join(needed)}")
  of_held = [place({name: float(held.columns[name][i]) for name in needed})
             for i in range(held.y.size)]
  of_asked = [place(values) for values in asked]
  of_band = []
  if len(needed) == 1:
    name = needed[0]
    every = [*table.columns[name], *held.columns[name], *(values[name] for values in asked)]
    of_band = [place({name: float(x)}) for x in np.geomspace(min(every), max(every), _BAND)]
  columns: list[Mapping[str, Floats]] = [
      {name: np.array([value]) for name, value in zip(needed, values, strict=True)}
      for values in found]
  return Designs(columns, [float(np.log(one[size][0])) for one in columns], of_held, of_asked,
                 of_band)


def all_of(own: Fit, context: Context, rows: Designs, drawn: Resamples | None, level: float,
           most: float) -> dict[str, Any]:
  """Forecasts everything; `most` is the ratio of an interval's ends from which it says nothing."""
  medians = [float(own.law.formula.value(own.parameters, one)[0]) for one in rows.columns]
  found: dict[float, list[Interval]] = {}
  for share in {*LEVELS, level}:
    found[share] = ([Interval(m, m) for m in medians] if drawn is None else intervals.of_new_runs(
        own, context.growth, context.noise, drawn, share, rows.columns, rows.log_sizes))

  def one(at: int) -> dict[str, Any]:
    low, high = found[0.9][at].low, found[0.9][at].high
    return {**{name: float(values[0]) for name, values in rows.columns[at].items()},
            "median": medians[at],
            **{f"interval_{share * 100:.0f}": [found[share][at].low, found[share][at].high]
               for share in LEVELS},
            "is_informative": low is not None and high is not None and high / low <= most}

  held = context.held
  scored = []
  for i, at in enumerate(rows.held):
    y = float(held.y[i])
    scored.append({"name": held.names[i], "y": y, **one(at), **score(y, medians[at],
                                                                     found[0.9][at])})
  return {"held_out": scored, "asked": [one(at) for at in rows.asked],
          "band": [{**one(at), "low": found[level][at].low, "high": found[level][at].high}
                   for at in rows.band]}


def score(y: float, median: float, interval: Interval, level: float = 0.9) -> dict[str, Any]:
  """Scores a forecast: inside or not, log error, and the interval score (Gneiting and Raftery
  2007) of the interval in logs; null where the interval has no end."""
  result: dict[str, Any] = {"is_inside": interval.holds(y), "log_error": math.log(y / median),
                            "interval_score": None}
  if interval.low and interval.high:
    low, high, at = math.log(interval.low), math.log(interval.high), math.log(y)
    result["interval_score"] = (high - low) + 2 / (1 - level) * (
        max(low - at, 0) + max(at - high, 0))
  return result
