"""How often intervals hold the truth, by simulation: data are made, fitted and resampled again.

`of_fit` takes a fit for the truth, and says how far the intervals beside it are to be trusted.
`ladders` is the study of docs/scaling.md: synthetic ladders of sizes with a known law.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from of_jax.scaling import intervals
from of_jax.scaling import law as laws
from of_jax.scaling import noise as noises
from of_jax.scaling import resample
from of_jax.scaling.jets import Floats
from of_jax.scaling.noise import Noise
from of_jax.scaling.solve import Data, solve
from of_jax.scaling.starts import Fit, fit

_RESAMPLES = 99


def of_fit(truth: Fit, noise: Noise, kind: str, level: float, count: int,
           rng: np.random.Generator) -> dict[str, Any]:
  """Counts how often the intervals of `count` sets of made data hold the fit's parameters.

  Returns: {"samples", "resamples", method: {parameter: share}}.
  """
  law = truth.law
  fitted = np.log(law.formula.value(truth.parameters, truth.data.columns))
  made_of = "residuals" if kind == "cases" else kind
  hits: dict[str, Floats] = {m: np.zeros(len(truth.parameters)) for m in intervals.METHODS}
  done = 0
  for _ in range(count):
    log_y = fitted + resample.noises(truth, made_of, rng, fitted.shape) * truth.data.noise
    growth, _ = noise.growth(log_y[None], (log_y - fitted)[None])
    data = Data(truth.data.columns, log_y, noise.relative(growth)[0], truth.data.weights)
    ends = solve(law.formula, law.is_log, truth.parameters[None], data, truth.delta)
    if not np.isfinite(ends.loss[0]):
      continue
    made = Fit(law, data, truth.delta, ends.parameters[0], float(ends.loss[0]), ends)
    drawn = resample.resample(made, noise, kind, _RESAMPLES, rng)
    done += 1
    for method, held in _held(made, drawn, truth.parameters, level).items():
      hits[method] += held
  return {"samples": done, "resamples": _RESAMPLES, **{
      method: {name: float(share / max(done, 1)) for name, share in zip(
          law.parameters, shares, strict=True)} for method, shares in hits.items()}}


def _held(made: Fit, drawn: resample.Resamples, truth: Floats, level: float) -> dict[str, Floats]:
  """Which parameters' intervals hold the truth, by method: 1 or 0 each."""
  held = {"profile": np.array([
      rise <= intervals.quantile(drawn.ratios[:, i], level)
      for i, rise in enumerate(_rises(made, truth))], np.float64)}
  for method, found in intervals.others(made, drawn, level).items():
    held[method] = np.array([one.holds(t) for one, t in zip(found, truth, strict=True)],
                            np.float64)
  return held


def _rises(made: Fit, truth: Floats) -> Floats:
  """Rise of the loss with each parameter held at the truth."""
  law, count = made.law, len(truth)
  eye = np.eye(count, dtype=np.bool_)
  starts = np.concatenate([np.where(eye, truth, made.parameters), np.tile(truth, (count, 1))])
  ends = solve(law.formula, law.is_log, starts, made.data, made.delta, np.tile(eye, (2, 1)))
  least = ends.loss.reshape(2, count).min(0)
  return resample.ratio(least, np.asarray(made.loss), made.degrees)


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
    Scenario("4 sizes", 4, "power", _POWER, 0.05),
    Scenario("5 sizes", 5, "power", _POWER, 0.05),
    Scenario("4 sizes, offset", 4, "power_offset", _OFFSET, 0.05),
    Scenario("5 sizes, offset", 5, "power_offset", _OFFSET, 0.05),
    Scenario("5 sizes, noise grows as size^0.5", 5, "power", _POWER, 0.03, 0.5),
    Scenario("the same, taken for constant", 5, "power", _POWER, 0.03, 0.5, "constant"),
)
SEEDS = 3


def ladders(scenario: Scenario, count: int, delta: float, seed: int = 0, resamples: int = 199,
            level: float = 0.9, log: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
  """Simulates ladders of a scenario.

  Returns: shares of intervals that held the exponent, by method, and the next run, "new_run".
  """
  sizes: Floats = 64 * 2 ** np.arange(scenario.sizes + 1, dtype=np.float64)
  columns = {"size": np.repeat(sizes[:-1], SEEDS)}
  law = laws.make(scenario.law, columns, ("size",))
  noise = noises.of_design(columns, "size", scenario.mode, len(law.parameters))
  which = law.parameters.index("b")
  hits: dict[str, list[float]] = {}
  for ladder in range(count):
    rng = np.random.default_rng([seed, ladder])
    for name, held in _ladder(scenario, law, noise, columns, sizes[-1:], delta, resamples, level,
                              rng, which):
      hits.setdefault(name, []).append(held)
    log(ladder + 1)
  return {"scenario": dataclasses.asdict(scenario), "ladders": count, "resamples": resamples,
          "level": level, "delta": delta, "seed": seed,
          "coverage": {name: float(np.mean(held)) for name, held in hits.items()}}


def _ladder(scenario: Scenario, law: laws.Law, noise: Noise, columns: dict[str, Floats],
            next_size: Floats, delta: float, resamples: int, level: float,
            rng: np.random.Generator, which: int) -> Sequence[tuple[str, float]]:
  """Makes one ladder, fits it, and says which intervals hold."""
  truth, size = np.array(scenario.truth), columns["size"]

  def draw(at: Floats, of: dict[str, Floats]) -> Floats:
    spread = scenario.noise * (at / 64) ** scenario.growth
    return np.log(law.formula.value(truth, of)) + spread * rng.standard_normal(at.size)

  log_y, new = draw(size, columns), {"size": next_size}
  growth, _ = noise.growth(log_y[None])
  made = fit(law, Data(columns, log_y, noise.relative(growth)[0], np.ones_like(log_y)), delta)
  log_next = [float(np.log(next_size[0]))]
  drawn = resample.resample(made, noise, resample.kind_of(made, "auto"), resamples, rng, [new],
                            log_next)
  found = [(name, float(held[which]))
           for name, held in _held(made, drawn, truth, level).items()]
  spread = noise.relative(growth, np.array(log_next))
  both = resample.with_new(made.data, new, draw(next_size, new)[None], spread)
  raised = solve(law.formula, law.is_log, made.parameters[None], both, delta)
  rise = resample.ratio(raised.loss, np.asarray(made.loss), made.degrees)[0]
  return [*found, ("new_run", float(rise <= intervals.quantile(drawn.new_ratios[:, 0], level))),
          ("growth_modelled", float(growth[0] != 0))]
