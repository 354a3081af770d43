"""Intervals of parameters and of new runs, from a fit and its resamples.

The default accepts the values at which the loss rises no more than resamples say (see `resample`):
Student's t where the law is a straight line in logarithms, and as far as the data allow where it is
bent, up to no end at all. Others stand beside it, to be compared.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from of_jax.scaling.jets import Floats
from of_jax.scaling.noise import Noise
from of_jax.scaling.resample import Resamples, inner, ratio, standard_errors, with_new
from of_jax.scaling.solve import solve
from of_jax.scaling.starts import Fit

METHODS = ("profile", "student", "studentised", "percentile", "bca")
# How far from the fit, in standard errors, an end is looked for, and how exactly.
_REACH = np.array([.25, .5, .75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10, 15, 25, 50, 100])
_BISECTIONS = 30
_NORMAL = statistics.NormalDist()

# Values [K] and parameters to start from [K, P] -> ratios [K] and parameters where the fits ended.
Rise = Callable[[Floats, Floats, npt.NDArray[np.int64]], tuple[Floats, Floats]]


@dataclasses.dataclass(frozen=True)
class Interval:
  """An interval; an end is None where the data set none."""

  low: float | None
  high: float | None

  def holds(self, value: float) -> bool:
    """Says whether the value is inside."""
    return ((self.low is None or self.low <= value)
            and (self.high is None or value <= self.high))


def quantile(ratios: Floats, level: float) -> float:
  """Finds the ratio that a share `level` of resamples stays below, as a test of that level has it:
  of R resamples the value in place (R + 1) x level."""
  place = min(int(np.ceil((ratios.size + 1) * level)), ratios.size)
  return float(np.sort(ratios)[place - 1])


def of_parameters(fit: Fit, resamples: Resamples, level: float, which: npt.NDArray[np.int64]
                  ) -> list[Interval]:
  """Profile intervals of some parameters."""
  law, data = fit.law, fit.data
  own = inner(fit, fit.parameters)
  sign = np.sign(fit.parameters)

  def rise(values: Floats, start: Floats, at: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    start = start.copy()
    index = which[at]
    with np.errstate(over="ignore"):
      start[np.arange(len(at)), index] = np.where(
          law.is_log[index], sign[index] * np.exp(values), values)
    held = np.arange(len(own)) == index[:, None]
    ends = solve(law.formula, law.is_log, start, data, fit.delta, held, 1e-10)
    return ratio(ends.loss, np.asarray(fit.loss), fit.degrees), ends.parameters

  errors = standard_errors(fit, fit.parameters[None], data)[0]
  limits = np.array([quantile(resamples.ratios[:, i], level) for i in which])
  ends = _crossings(rise, own[which], errors[which], limits, fit.parameters)
  return [_outer(fit, int(i), low, high) for (low, high), i in zip(ends, which, strict=True)]


def of_new_runs(fit: Fit, noise_growth: float, noise: Noise, resamples: Resamples, level: float,
                new: list[Mapping[str, Floats]], log_sizes: list[float]) -> list[Interval]:
  """Intervals of the target of one new run of each design, its own noise included."""
  if not new:
    return []
  law = fit.law
  centres = np.array([float(np.log(law.formula.value(fit.parameters, one))[0]) for one in new])
  spreads = np.array([float(noise.relative(np.array([noise_growth]), np.array([s]))[0, 0])
                      for s in log_sizes])

  def rise(values: Floats, start: Floats, at: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    ratios, parameters = np.empty(len(at)), np.array(start)
    for f in np.unique(at):
      rows = at == f
      both = with_new(fit.data, new[f], values[rows, None], np.full((rows.sum(), 1), spreads[f]))
      ends = solve(law.formula, law.is_log, start[rows], both, fit.delta, tolerance=1e-10)
      ratios[rows] = ratio(ends.loss, np.asarray(fit.loss), fit.degrees)
      parameters[rows] = ends.parameters
    return ratios, parameters

  limits = np.array([quantile(resamples.new_ratios[:, f], level) for f in range(len(new))])
  ends = _crossings(rise, centres, fit.scale * spreads, limits, fit.parameters)
  with np.errstate(over="ignore"):
    found = np.exp(np.array(ends))
  return [Interval(*(float(x) if 0 < x < np.inf else None for x in pair)) for pair in found]


def _crossings(rise: Rise, centre: Floats, step: Floats, limits: Floats, parameters: Floats
               ) -> list[tuple[float, float]]:
  """Values on both sides of each centre at which the rise reaches its limit; infinite for none."""
  count = len(centre)
  which = np.tile(np.arange(count), 2)
  side = np.repeat([-1.0, 1.0], count)
  inside = np.zeros(2 * count)
  outside = np.full(2 * count, np.inf)
  warm = np.tile(parameters, (2 * count, 1))
  for reach in _REACH:
    open_ = np.flatnonzero(np.isinf(outside))
    if not open_.size:
      break
    values = centre[which] + side * reach * step[which]
    found, ended = rise(values[open_], warm[open_], which[open_])
    over = found > limits[which[open_]]
    outside[open_[over]] = reach
    inside[open_[~over]] = reach
    warm[open_[~over]] = ended[~over]
  known = np.flatnonzero(np.isfinite(outside))
  for _ in range(_BISECTIONS if known.size else 0):
    middle = (inside + outside) / 2
    values = centre[which] + side * np.where(np.isfinite(middle), middle, 0) * step[which]
    found, ended = rise(values[known], warm[known], which[known])
    over = found > limits[which[known]]
    outside[known[over]] = middle[known[over]]
    inside[known[~over]] = middle[known[~over]]
    warm[known[~over]] = ended[~over]
  ends = centre[which] + side * np.where(np.isfinite(outside), inside, np.inf) * step[which]
  return [(float(ends[i]), float(ends[count + i])) for i in range(count)]


def others(fit: Fit, resamples: Resamples, level: float, without: Floats
           ) -> dict[str, list[Interval]]:
  """Intervals of all parameters by the methods that stand beside the default; `without` are the
  parameters without each point in turn, [n, P]."""
  own = inner(fit, fit.parameters)
  errors = standard_errors(fit, fit.parameters[None], fit.data)[0]
  tail = (1 - level) / 2
  sample = inner(fit, resamples.parameters)
  t = student(fit.degrees, level)
  students = np.quantile(resamples.students, [1 - tail, tail], axis=0)
  limits = {
      "student": (own - t * errors, own + t * errors),
      "studentised": (own - students[0] * errors, own - students[1] * errors),
      "percentile": tuple(np.quantile(sample, [tail, 1 - tail], axis=0)),
      "bca": _bca(own, sample, inner(fit, without), tail)}
  result = {}
  for method, (low, high) in limits.items():
    result[method] = [_outer(fit, i, float(low[i]), float(high[i])) for i in range(len(own))]
  return result


def student(degrees: int, level: float) -> float:
  """The quantile of Student's t that holds `level` on both sides."""
  # Imported here: it is slow, and a mistake on the command line is reported before.
  from scipy import stats
  return float(stats.t.ppf(0.5 + level / 2, degrees))


def _outer(fit: Fit, i: int, low: float, high: float) -> Interval:
  """Turns an interval in units of the fit to one of the parameter itself."""
  both = [_back(fit, i, low), _back(fit, i, high)]
  return Interval(*(both[::-1] if fit.law.is_log[i] and fit.parameters[i] < 0 else both))


def _back(fit: Fit, i: int, x: float) -> float | None:
  """Turns a value in units of the fit to one of the parameter; None where it is no number."""
  if fit.law.is_log[i]:
    with np.errstate(over="ignore"):
      x = float(np.sign(fit.parameters[i]) * np.exp(x)) if np.isfinite(x) else np.inf
  return float(x) if np.isfinite(x) else None


def _bca(own: Floats, sample: Floats, without: Floats, tail: float) -> tuple[Floats, Floats]:
  """Bias-corrected and accelerated percentiles (Efron 1987)."""
  count = len(sample)
  low, high = np.empty_like(own), np.empty_like(own)
  for i in range(own.size):
    below = ((sample[:, i] < own[i]).sum() + 0.5 * (sample[:, i] == own[i]).sum()) / count
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / count), 1 - 0.5 / count))
    apart = without[:, i].mean() - without[:, i]
    spread = (apart ** 2).sum()
    pull = (apart ** 3).sum() / (6 * spread ** 1.5) if spread else 0.0
    places = []
    for share in (tail, 1 - tail):
      z = bias + _NORMAL.inv_cdf(share)
      places.append(_NORMAL.cdf(bias + z / (1 - pull * z)))
    low[i], high[i] = np.quantile(sample[:, i], places)
  return low, high
