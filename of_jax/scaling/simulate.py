"""How often intervals hold the truth, by simulation: data are made, fitted and resampled again.

`of_fit` takes a fit for the truth, and says how far the intervals beside it are to be trusted.
`ladders` is the study of docs/scaling.md: synthetic ladders of sizes with a known law.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from of_jax.scaling import intervals
from of_jax.scaling import law as laws
from of_jax.scaling import noise as noises
from of_jax.scaling import resample
from of_jax.scaling.jets import Floats
from of_jax.scaling.noise import Noise
from of_jax.scaling.solve import Data, Ends, solve
from of_jax.scaling.starts import Fit, fit_all

_RESAMPLES = 99
# Ladders that one process simulates at a time, and made data of a fit.
_JOB, _TOGETHER = 50, 25


def of_fit(truth: Fit, noise: Noise, kind: str, level: float, count: int,
           rng: np.random.Generator) -> dict[str, Any]:
  """Counts how often the intervals of `count` sets of made data hold the fit's parameters.

  Returns: {"samples", "resamples", method: {parameter: share}}.
  """
  law = truth.law
  fitted = np.log(law.formula.value(truth.parameters, truth.data.columns))
  made_of = "residuals" if kind == "cases" else kind
  parts = []
  for _ in range(count):
    log_y = fitted + resample.noises(truth, made_of, rng, fitted.shape) * truth.data.noise
    growth, _ = noise.growth(log_y[None], (log_y - fitted)[None])
    parts.append(Data(truth.data.columns, log_y, noise.relative(growth)[0], truth.data.weights))
  start = np.tile(truth.parameters, (count, 1))
  ends = solve(law.formula, law.is_log, start, resample.stacked(parts, 1), truth.delta)
  made = [Fit(law, part, truth.delta, ends.parameters[k], float(ends.loss[k]),
              Ends(ends.parameters[k:k + 1], ends.loss[k:k + 1], ends.converged[k:k + 1]))
          for k, part in enumerate(parts)]
  hits: dict[str, Floats] = {m: np.zeros(len(truth.parameters)) for m in intervals.METHODS}
  for first in range(0, count, _TOGETHER):
    some = made[first:first + _TOGETHER]
    drawn = resample.resample_all(some, noise, kind, _RESAMPLES, [rng] * len(some))
    for method, held in _held(some, drawn, truth.parameters, level).items():
      hits[method] += held
  return {"samples": count, "resamples": _RESAMPLES, **{
      method: {name: float(share / count) for name, share in zip(
          law.parameters, shares, strict=True)} for method, shares in hits.items()}}


def _held(made: Sequence[Fit], drawn: Sequence[resample.Resamples], truth: Floats, level: float
          ) -> dict[str, Floats]:
  """How many intervals of each parameter hold the truth, by method: [P] each."""
  held: dict[str, Floats] = {m: np.zeros(len(truth)) for m in intervals.METHODS}
  for fit_, own, rises, without in zip(made, drawn, _rises(made, truth), resample.jackknife(made),
                                       strict=True):
    held["profile"] += [bool(rise <= intervals.quantile(own.ratios[:, i], level))
                        for i, rise in enumerate(rises)]
    for method, found in intervals.others(fit_, own, level, without).items():
      held[method] += [one.holds(t) for one, t in zip(found, truth, strict=True)]
  return held


def _rises(made: Sequence[Fit], truth: Floats) -> Floats:
  """Rise of the loss with each parameter held at the truth, [M, P]."""
  law, count = made[0].law, len(truth)
  eye = np.eye(count, dtype=np.bool_)
  starts = np.concatenate([np.concatenate([np.where(eye, truth, one.parameters),
                                           np.tile(truth, (count, 1))]) for one in made])
  data = resample.stacked([one.data for one in made], 2 * count)
  ends = solve(law.formula, law.is_log, starts, data, made[0].delta,
               np.tile(eye, (2 * len(made), 1)))
  least = ends.loss.reshape(len(made), 2, count).min(1)
  return resample.ratio(least, np.array([[one.loss] for one in made]), made[0].degrees)


@dataclasses.dataclass(frozen=True)
class Scenario:
  """Synthetic ladders: sizes 64, 128, ..., three seeds each, and the next size to forecast.

  Attributes:
    name: of it.
    sizes: how many.
    law, truth: the law that made the data, and is fitted.
    noise: standard deviation of log y at the smallest size.
    growth: its exponent in the size.
    mode: how noise is modelled.
  """

  name: str
  sizes: int
  law: str
  truth: tuple[float, ...]
  noise: float
  growth: float = 0.0
  mode: str = "auto"


_POWER, _OFFSET = (0.5, 0.8), (0.5, 0.8, 3.0)
SCENARIOS = (
    Scenario("5 sizes, noise grows as size^0.5", 5, "power", _POWER, 0.03, 0.5),
    Scenario("the same, taken for constant", 5, "power", _POWER, 0.03, 0.5, "constant"),
    Scenario("4 sizes", 4, "power", _POWER, 0.05),
    Scenario("5 sizes", 5, "power", _POWER, 0.05),
    Scenario("4 sizes, offset", 4, "power_offset", _OFFSET, 0.05),
    Scenario("5 sizes, offset", 5, "power_offset", _OFFSET, 0.05),
)
SEEDS = 3


def ladders(scenario: Scenario, count: int, delta: float, seed: int = 0, resamples: int = 99,
            level: float = 0.9, first: int = 0) -> dict[str, float]:
  """Simulates ladders of a scenario, from number `first` on; each has draws of its own.

  Returns: counts of intervals that held the exponent, by method, and the next run, "new_run".
  """
  sizes: Floats = 64 * 2 ** np.arange(scenario.sizes + 1, dtype=np.float64)
  columns = {"size": np.repeat(sizes[:-1], SEEDS)}
  law = laws.make(scenario.law, columns, ("size",))
  noise = noises.of_design(columns, "size", scenario.mode, len(law.parameters))
  which = law.parameters.index("b")
  rngs = [np.random.default_rng([seed, ladder]) for ladder in range(first, first + count)]
  truth, n = np.array(scenario.truth), len(columns["size"])
  next_size, log_next = {"size": sizes[-1:]}, np.log(sizes[-1:])

  def spread(at: Floats) -> Floats:
    return scenario.noise * (at / 64) ** scenario.growth

  log_y = np.log(law.formula.value(truth, columns)) + spread(columns["size"]) * np.stack(
      [rng.standard_normal(n) for rng in rngs])
  log_new = np.log(law.formula.value(truth, next_size)) + spread(sizes[-1:]) * np.stack(
      [rng.standard_normal(1) for rng in rngs])
  growth, _ = noise.growth(log_y)
  made = fit_all(law, [Data(columns, y, k, np.ones(n)) for y, k in zip(
      log_y, noise.relative(growth), strict=True)], delta)
  drawn = resample.resample_all(made, noise, "normal", resamples, rngs, [next_size],
                                [float(log_next[0])], [which])
  hits = {name: float(held[which]) for name, held in _held(made, drawn, truth, level).items()}
  both = resample.with_new(resample.stacked([one.data for one in made], 1), next_size, log_new,
                           noise.relative(growth, log_next))
  raised = solve(law.formula, law.is_log, np.stack([one.parameters for one in made]), both, delta)
  rises = resample.ratio(raised.loss, np.array([one.loss for one in made]), made[0].degrees)
  hits["new_run"] = float(sum(
      bool(rise <= intervals.quantile(own.new_ratios[:, 0], level))
      for rise, own in zip(rises, drawn, strict=True)))
  return hits


def study(count: int, delta: float, seed: int, level: float, resamples: int = 99,
          log: Callable[[dict[str, Any]], None] = lambda row: None) -> list[dict[str, Any]]:
  """Simulates `count` ladders of every scenario, on all processors: a row each.

  The numbers do not depend on how many processors there are.
  """
  rows = []
  with futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
    jobs = {scenario: [pool.submit(ladders, scenario, min(_JOB, count - first), delta, seed,
                                   resamples, level, first)
                       for first in range(0, count, _JOB)] for scenario in SCENARIOS}
    for scenario, parts in jobs.items():
      hits: dict[str, float] = {}
      for part in parts:
        for name, held in part.result().items():
          hits[name] = hits.get(name, 0.0) + held
      rows.append({"scenario": dataclasses.asdict(scenario), "ladders": count,
                   "resamples": resamples, "level": level, "delta": delta, "seed": seed,
                   "coverage": {name: held / count for name, held in hits.items()}})
      log(rows[-1])
  return rows
