"""Effects: how large a difference between runs is, how sure that is, and what it decides.

Enters: numbers of runs by seed. Leaves: an interval of the effect, and a verdict on it against the
margin that the rule names.

Up to five seeds the interval is Student's t, with the standard error of the jackknife over seeds,
which for a mean is the usual one; from six on it is a bootstrap of the seeds, with percentiles
widened so that for normal noise it is Student's t too (Hesterberg 2015, The American Statistician
69:371). The statistic is computed anew for each set of seeds, a choice such as the best learning
rate with it. Seeds are one group where runs are paired, and one group a side where they are not.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from of_jax.claims.judge import Verdict, undefined

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# Positions of the seeds of each group, [..., n] -> the effect, [...].
Statistic = Callable[..., Floats]

TAIL = 0.05
BOOTSTRAP_FROM = 6
RESAMPLES = 2_000
MOST_SEEDS = 100


@dataclasses.dataclass(frozen=True)
class Test:
  """A part of a rule: the effect must lie beyond the margin.

  Attributes:
    name: what is compared.
    effect: "log ratio", "difference", "share of seeds" or "rank correlation".
    margin: an effect above it supports the claim, one below it contradicts it. "No worse" has a
      margin below 0.
    spread: standard deviation between seeds that is assumed where one seed alone tells none.
    seeds: how many the rule reads.
    choices: of how many settings the best is chosen on each side.
  """

  name: str
  effect: str
  margin: float
  spread: float
  seeds: int
  choices: int = 1


@dataclasses.dataclass(frozen=True)
class Interval:
  """An interval; `low` and `high` are None where the seeds tell none, with `error` then too."""

  estimate: float
  low: float | None
  high: float | None
  error: float | None
  method: str


@dataclasses.dataclass(frozen=True)
class Effect:
  """An effect as measured: its statistic over groups of `counts` seeds, see the module."""

  test: Test
  statistic: Statistic
  counts: tuple[int, ...]
  values: Mapping[str, Any]


@functools.lru_cache(maxsize=4096)
def student(tail: float, degrees: float) -> float:
  """Finds the value that Student's t exceeds with probability `tail`."""
  # Imported here: it is slow, and a mistake on the command line is reported before.
  from scipy.special import stdtrit
  return float(stdtrit(degrees, 1 - tail))


def interval(statistic: Statistic, counts: Sequence[int], tail: float = TAIL,
             upper_tail: float = TAIL) -> Interval:
  """Finds the interval of a statistic; a tail is the probability beyond an end."""
  every = [np.arange(count) for count in counts]
  estimate = float(statistic(*every))
  if min(counts) < 2 or not math.isfinite(estimate):
    return Interval(estimate, None, None, None, "one seed")
  variances = []
  for g, count in enumerate(counts):
    rows = [np.broadcast_to(own, (count, own.size)) for own in every]
    rows[g] = np.stack([np.delete(every[g], i) for i in range(count)])
    left = statistic(*rows)
    variances.append((count - 1) / count * float(((left - left.mean()) ** 2).sum()))
  error = math.sqrt(sum(variances))
  if not error > 1e-12 * abs(estimate):
    return Interval(estimate, None, None, 0.0, "seeds without a spread")
  degrees = sum(variances) ** 2 / sum(v ** 2 / (n - 1) for v, n in zip(
      variances, counts, strict=True))
  if min(counts) < BOOTSTRAP_FROM:
    return Interval(estimate, estimate - student(tail, degrees) * error,
                    estimate + student(upper_tail, degrees) * error, error, "Student's t")
  low, high = bootstrap(statistic, counts, tail, upper_tail)
  return Interval(estimate, low, high, error, "bootstrap")


def bootstrap(statistic: Statistic, counts: Sequence[int], tail: float, upper_tail: float
              ) -> tuple[float, float]:
  """Bootstraps seeds, from seed 0; resamples in which the statistic is undefined are left out."""
  from scipy.special import ndtr
  rng = np.random.default_rng(0)
  found = statistic(*(rng.integers(n, size=(RESAMPLES, n)) for n in counts))
  found = found[np.isfinite(found)]
  n = min(counts)
  shares = [float(ndtr(-math.sqrt(n / (n - 1)) * student(t, n - 1))) for t in (tail, upper_tail)]
  if not found.size:
    return math.nan, math.nan
  low, high = np.quantile(found, [shares[0], 1 - shares[1]])
  return float(low), float(high)


def of_share(holds: Sequence[bool], tail: float = TAIL, upper_tail: float = TAIL) -> Interval:
  """Finds the exact interval of a share of seeds (Clopper and Pearson 1934)."""
  from scipy.special import betaincinv
  n, k = len(holds), sum(holds)
  low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
  high = float(betaincinv(k + 1, n - k, 1 - upper_tail)) if k < n else 1.0
  return Interval(k / n, low, high, None, "exact binomial")


def paired(test: Test, first: Sequence[float], second: Sequence[float], is_paired: bool,
           values: Mapping[str, Any] | None = None) -> Effect:
  """Makes the effect of the mean of `first` less that of `second`, by seed where it is paired."""
  x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
  told: dict[str, Any] = {"first": x.tolist(), "second": y.tolist(), **(values or {})}
  if is_paired:
    d = x - y
    return Effect(test, lambda i: d[i].mean(-1), (d.size,), told | {"by_seed": d.tolist()})
  return Effect(test, lambda i, j: x[i].mean(-1) - y[j].mean(-1), (x.size, y.size), told)


def mean(test: Test, values: Sequence[float]) -> Effect:
  """Makes the effect that each seed has by itself."""
  x = np.asarray(values, np.float64)
  return Effect(test, lambda i: x[i].mean(-1), (x.size,), {"by_seed": x.tolist()})


def verdict_of(found: Interval, margin: float) -> str:
  """Decides by an interval against a margin."""
  if found.low is not None and found.low > margin:
    return "reproduced"
  if found.high is not None and found.high < margin:
    return "not reproduced"
  return "inconclusive"


def combined(verdicts: Sequence[str]) -> str:
  """Combines parts: all must be reproduced, and any contradicts."""
  if "not reproduced" in verdicts:
    return "not reproduced"
  return "reproduced" if {*verdicts} == {"reproduced"} else "inconclusive"


def seeds_to_decide(effect: Effect, found: Interval, upper_tail: float) -> int | None:
  """Says how many seeds would decide if the effect is what it seems; None: not up to a hundred."""
  test, n = effect.test, min(effect.counts)
  if test.effect == "share of seeds":
    for count in range(n + 1, MOST_SEEDS + 1):
      k = round(found.estimate * count)
      if verdict_of(of_share([True] * k + [False] * (count - k), TAIL, upper_tail), test.margin
                    ) != "inconclusive":
        return count
    return None
  spread = found.error * math.sqrt(n) if found.error else test.spread
  away = found.estimate - test.margin
  for count in range(max(n + 1, 2), MOST_SEEDS + 1):
    tail = TAIL if away > 0 else upper_tail
    if student(tail, count - 1) * spread / math.sqrt(count) < abs(away):
      return count
  return None


def judged(effects: Sequence[Effect], evidence: Mapping[str, Any], summary: str,
           outside: str = "") -> Verdict:
  """Makes the verdict of a rule of one or several parts; `outside` ends the summary.

  Any of k parts may contradict, so that an upper end has a tail of a k-th.
  """
  upper = TAIL / len(effects)
  parts, told = [], []
  for effect in effects:
    test = effect.test
    found = (of_share(effect.values["holds"], TAIL, upper) if test.effect == "share of seeds"
             else interval(effect.statistic, effect.counts, TAIL, upper))
    verdict = verdict_of(found, test.margin)
    needed = (seeds_to_decide(effect, found, upper)
              if verdict == "inconclusive" and math.isfinite(found.estimate) else None)
    parts.append({
        "name": test.name, "effect": test.effect, "margin": test.margin, "verdict": verdict,
        "estimate": found.estimate, "interval": [found.low, found.high],
        "tails": [TAIL, upper], "method": found.method, "seeds": list(effect.counts),
        "paired": len(effect.counts) == 1, **effect.values, "seeds_to_decide": needed})
    told.append(_said(test, found, verdict, needed, min(effect.counts)))
  estimates = [part["estimate"] for part in parts]
  if not all(math.isfinite(value) for value in estimates):
    return undefined({**evidence, "parts": parts}, summary + outside)
  verdict = combined([part["verdict"] for part in parts])
  return Verdict(verdict, {**evidence, "parts": parts},  # type: ignore[arg-type]
                 f"{summary}; {'; '.join(told)}{outside}")


def _said(test: Test, found: Interval, verdict: str, needed: int | None, seeds: int) -> str:
  """Says what a part came to in one clause."""
  def shown(x: float) -> str:
    return f"{math.exp(x):.3g}" if test.effect == "log ratio" else f"{x:.3g}"

  what = "factor" if test.effect == "log ratio" else test.effect
  text = f"{test.name}: {what} {shown(found.estimate)}"
  if found.low is not None and found.high is not None:
    text += f" [{shown(found.low)}, {shown(found.high)}]"
  text += f" against {shown(test.margin)}"
  if verdict != "inconclusive":
    return text
  if found.error == 0:
    return f"{text}, {seeds} seeds without any spread decide nothing"
  text += ", open with " + ("one seed" if seeds == 1 else f"{seeds} seeds")
  how = f" (if seeds differ by {test.spread:g})" if seeds == 1 else ""
  if not math.isfinite(found.estimate):
    return text
  return text + (f", {needed} would decide{how}" if needed else
                 f", no number up to {MOST_SEEDS} would decide{how}")
