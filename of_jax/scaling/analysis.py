"""The whole analysis: points and a law in, what fit.json holds out."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from of_jax.errors import UserError, nearest
from of_jax.scaling import forecast, holdout, identify, intervals
from of_jax.scaling import law as laws
from of_jax.scaling import noise as noises
from of_jax.scaling import resample, simulate
from of_jax.scaling.intervals import Interval
from of_jax.scaling.jets import Floats
from of_jax.scaling.law import Law
from of_jax.scaling.solve import Data
from of_jax.scaling.starts import Fit, fit
from of_jax.scaling.table import Table, check_variables

# Residuals below these are of rounding, and leave nothing to resample.
_EXACT = 1e-9
# Resamples are simulated in turn only for few points, where they are needed most and cost little.
_SIMULATED = 100


@dataclasses.dataclass(frozen=True)
class Options:
  """Choices of an analysis; docs/scaling.md says what each does.

  Attributes:
    law, x, parameters: a named law or formula, a named law's variable, further parameters' names.
    delta: of Huber's loss, in log y.
    size: the variable that noise and held-out sizes go by; default the law's first.
    hold_out: how many of the largest sizes are forecast and not fitted.
    drop_highest: how many of the highest targets are left out.
    forecasts: designs of new runs, variable -> value.
    level, resamples, kind, seed: of the intervals.
    noise: "auto", "constant" or "growing".
    simulated: fits of made data that tell how often intervals hold; None for the default.
    compare: laws to compare; None for those that apply.
    exponent_width, forecast_ratio: an interval wider is uninformative.
  """

  law: str
  x: tuple[str, ...] = ()
  parameters: tuple[str, ...] = ()
  delta: float = 1e-3
  size: str = ""
  hold_out: int = 0
  drop_highest: int = 0
  forecasts: tuple[Mapping[str, float], ...] = ()
  level: float = 0.9
  resamples: int = 1000
  kind: str = "auto"
  seed: int = 0
  noise: str = "auto"
  simulated: int | None = None
  compare: tuple[str, ...] | None = None
  exponent_width: float = 0.5
  forecast_ratio: float = 4.0


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A fit ready to be asked, and what it was made of."""

  table: Table
  held: Table
  law: Law
  size: str
  noise: noises.Noise
  growth: float
  growth_p: float
  fit: Fit


def prepare(table: Table, options: Options) -> Prepared:
  """Checks the points, leaves out what is to be held out, and fits.

  Raises:
    UserError: a fault in the law, the points or the options.
  """
  table, held, law, size = _split(table, options)
  columns = {name: table.columns[name] for name in {*law.formula.variables, size}}
  noise = noises.of_design(columns, size, options.noise, len(law.parameters))
  log_y = np.log(table.y)
  ones = np.ones_like(log_y)
  # The runs' spread tells the trend; without repeated runs, a first fit's residuals do.
  first = fit(law, Data(columns, log_y, ones, ones), options.delta)
  if not math.isfinite(first.loss):
    raise UserError(f"--law={options.law}: not positive at the points, whatever its parameters")
  growth, p = noise.growth(log_y[None], first.residuals[None])
  data = Data(columns, log_y, noise.relative(growth)[0], ones)
  return Prepared(table, held, law, size, noise, float(growth[0]), float(p[0]),
                  fit(law, data, options.delta) if growth[0] else first)


def _split(table: Table, options: Options) -> tuple[Table, Table, Law, str]:
  """Takes points out: the highest, and the largest sizes, which come back apart."""
  if options.drop_highest >= table.y.size:
    raise UserError(f"--drop_highest={options.drop_highest}: there are {table.y.size} points")
  if options.drop_highest:
    keep = np.ones(table.y.size, np.bool_)
    keep[np.argsort(table.y, kind="stable")[table.y.size - options.drop_highest:]] = False
    table = table.keep(keep, f"the {options.drop_highest} highest {table.y_name}")
  law = laws.make(options.law, table.columns, options.x, options.parameters)
  size = options.size or law.formula.variables[0]
  if size not in table.columns:
    raise UserError(f"--size={size}: no such variable" + nearest(size, table.columns))
  check_variables(table, [*dict.fromkeys([*law.formula.variables, size])])
  sizes = np.unique(table.columns[size])
  if options.hold_out >= sizes.size:
    raise UserError(f"--hold_out={options.hold_out}: of {sizes.size} sizes, at least one must stay")
  cut = sizes[sizes.size - options.hold_out] if options.hold_out else math.inf
  is_held = table.columns[size] >= cut
  table, held = table.keep(~is_held), table.keep(is_held)
  if table.y.size <= len(law.parameters):
    raise UserError(f"--law={options.law}: {len(law.parameters)} parameters need at least "
                    f"{len(law.parameters) + 1} points, here are {table.y.size}")
  return table, held, law, size


def analyse(table: Table, options: Options) -> dict[str, Any]:
  """Fits, and makes what fit.json holds.

  Raises:
    UserError: a fault in the law, the points or the options.
  """
  ready = prepare(table, options)
  rng = np.random.default_rng(options.seed)
  own, law = ready.fit, ready.law
  rows = forecast.designs(ready.table, ready.held, law, ready.size, options.forecasts)
  is_exact = own.scale < _EXACT
  kind = resample.kind_of(own, options.kind)
  drawn = None if is_exact else resample.resample(
      own, ready.noise, kind, options.resamples, rng, rows.columns, rows.log_sizes)
  forecasts = forecast.all_of(own, ready, rows, drawn, options.level, options.forecast_ratio)
  rivals = holdout.rivals(law, own.data, options.compare, table.y_name)
  size = ready.table.columns[ready.size]
  comparison = holdout.compare(rivals, own.data, size, options.delta)
  errors = next(row for row in comparison if row["formula"] == law.formula.text)
  sampled = _simulated(ready, options, kind, is_exact)
  parameters, why = _parameters(ready, options, drawn)
  return {
      "law": law.name, "formula": law.formula.text, "y": table.y_name, "y_says": table.y_says,
      "x": list(law.formula.variables), "size": ready.size, "source": table.source,
      "parameters": parameters, "not_identified": why,
      "points": _points(ready.table, own),
      "held_out": {"points": forecasts["held_out"],
                   **{kind: errors[kind] for kind in ("leave_one_size_out", "rolling")}},
      "comparison": comparison,
      "forecasts": forecasts["asked"], "band": forecasts["band"],
      "noise": {"mode": options.noise, "growth": ready.growth, "p_value": ready.growth_p,
                "standard_deviation": own.scale, "degrees": own.degrees,
                "by": "residuals" if ready.noise.unreplicated else "runs of one size"},
      "uncertainty": {"method": "profile", "level": options.level, "resampling": kind,
                      "resamples": 0 if is_exact else options.resamples, "seed": options.seed,
                      "coverage": sampled},
      "fit": {"delta": options.delta, "loss": own.loss, "converged": bool(own.ends.converged[
          int(np.argmin(own.ends.loss))]), "starts": [
          {"parameters": list(p), "loss": loss, "converged": bool(c)} for p, loss, c in zip(
              own.ends.parameters, own.ends.loss, own.ends.converged, strict=True)]},
      "left_out": {why: list(names) for why, names in ready.table.left_out.items()},
      "notes": list(table.notes), "data_sha256": ready.table.sha256(),
  }


def _simulated(ready: Prepared, options: Options, kind: str, is_exact: bool
               ) -> dict[str, Any] | None:
  """How often each kind of interval holds the truth, where the truth is this fit."""
  count = options.simulated
  if count is None:
    count = _SIMULATED if ready.table.y.size < resample.ENOUGH_POINTS else 0
  if is_exact or not count:
    return None
  rng = np.random.default_rng([options.seed, 1])
  return simulate.of_fit(ready.fit, ready.noise, kind, options.level, count, rng)


def _parameters(ready: Prepared, options: Options, drawn: resample.Resamples | None
                ) -> tuple[dict[str, Any], dict[str, str]]:
  """Each parameter with its intervals, and why some have none."""
  own, names = ready.fit, ready.law.parameters
  why = {**identify.flat(own), **identify.swapped(own)}
  if drawn is None:
    point = [Interval(float(v), float(v)) for v in own.parameters]
    return {name: _parameter(own, i, point[i], name in why, 0.0, {}, options)
            for i, name in enumerate(names)}, why
  told = np.array([i for i, name in enumerate(names) if name not in why], np.int64)
  found = dict(zip(told, intervals.of_parameters(own, drawn, options.level, told), strict=True)
               ) if told.size else {}
  all_of = [found.get(i, Interval(None, None)) for i in range(len(names))]
  if found:
    bounded = intervals_of(own, names, all_of, [*found])
    why.update({name: text for name, text in {
        **bounded, **identify.elsewhere(own, all_of, options.level)}.items() if name not in why})
  others = intervals.others(own, drawn, options.level, resample.jackknife([own])[0])
  errors = drawn.parameters.std(0, ddof=1)
  return {name: _parameter(own, i, all_of[i], name in why, float(errors[i]),
                           {m: v[i] for m, v in others.items()}, options)
          for i, name in enumerate(names)}, why


def intervals_of(own: Fit, names: Sequence[str], found: list[Interval], told: list[int]
                 ) -> dict[str, str]:
  """Reasons of parameters whose interval has no end."""
  return identify.unbounded(tuple(names[i] for i in told), [found[i] for i in told],
                            own.parameters[told])


def _parameter(own: Fit, i: int, interval: Interval, is_unknown: bool, error: float,
               others: Mapping[str, Interval], options: Options) -> dict[str, Any]:
  name = own.law.parameters[i]
  low, high = (None, None) if is_unknown else (interval.low, interval.high)
  result: dict[str, Any] = {"value": float(own.parameters[i]), "low": low, "high": high,
                            "standard_error": None if is_unknown else error}
  if name in own.law.formula.exponents:
    result["is_informative"] = (low is not None and high is not None
                                and high - low <= options.exponent_width)
  if others and not is_unknown:
    result["other_intervals"] = {method: {"low": one.low, "high": one.high}
                                 for method, one in others.items()}
  return result


def _points(table: Table, own: Fit) -> list[dict[str, Any]]:
  fitted: Floats = own.law.formula.value(own.parameters, own.data.columns)
  return [{"name": name, **{x: float(own.data.columns[x][i]) for x in own.data.columns},
           "y": float(table.y[i]), "fitted": float(fitted[i]),
           "log_residual": float(np.log(table.y[i] / fitted[i])),
           "relative_noise": float(own.data.noise[i])}
          for i, name in enumerate(table.names)]
