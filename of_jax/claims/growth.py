"""Rules on how kurtosis changes, over training and with size. Enters: names of runs, margins.
Leaves: judges, as of_jax.claims.rules makes them of peaks.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from of_jax.claims import effects
from of_jax.claims.effects import Test, judged
from of_jax.claims.judge import Judge, Runs, Verdict, span
from of_jax.claims.pairs import share_order
from of_jax.claims.rules import SPREAD, Configs

# The least factor by which kurtosis that "falls" is lower at the end.
FALLS = 1.05


def falls(names: Sequence[str], what: str, factor: float = FALLS) -> Judge:
  """Judges that kurtosis of the largest layer is lower at the end than at first, by `factor`."""
  def tests(configs: Configs) -> tuple[Test]:
    return (Test("first kurtosis over last", "log ratio", math.log(factor), SPREAD, len(names)),)

  def decide(runs: Runs) -> Verdict:
    ends = {n: [float(np.max(runs[n].measured("kurtosis").values[i])) for i in (0, -1)]
            for n in names}
    fallen = sum(last < first for first, last in ends.values())
    return judged(
        [effects.mean(tests({})[0], [math.log(first / last) for first, last in ends.values()])],
        {"first_and_last_kurtosis": ends},
        f"{what}'s kurtosis falls in {fallen} of {len(names)} runs ("
        + ", ".join(f"{first:.3g} to {last:.3g}" for first, last in ends.values()) + ")")

  return Judge({what: names}, decide, tests)


def growth(names: Sequence[str], factor: float) -> Judge:
  """Judges that kurtosis - 1 grows from the first logged step to its peak by `factor`.

  One is subtracted because kurtosis starts at its smallest value, 1, and cannot exceed the width.
  Inconclusive where it starts at exactly 1: what grows from nothing has no factor.
  """
  def tests(configs: Configs) -> tuple[Test]:
    return (Test("growth of kurtosis - 1", "log ratio", math.log(factor), SPREAD, len(names)),)

  def decide(runs: Runs) -> Verdict:
    first = {n: float(np.max(runs[n].measured("kurtosis").values[0])) for n in names}
    peaks = {n: runs[n].peak("kurtosis") for n in names}
    ratios = {n: (peaks[n] - 1) / (first[n] - 1) if first[n] > 1 else math.inf for n in names}
    return judged(
        [effects.mean(tests({})[0], [math.log(r) if r > 0 else math.nan
                                     for r in ratios.values()])],
        {"first_kurtosis": first, "peak_kurtosis": peaks, "growth": ratios,
         "growth_needed": factor},
        f"kurtosis - 1 grows by a factor of {span(list(ratios.values()))} over "
        f"{len(names)} runs")

  return Judge({"growing": names}, decide, tests)


def grows_faster(first: Mapping[int, Sequence[str]], second: Mapping[int, Sequence[str]],
                 margin: float, what: str, other: str) -> Judge:
  """Judges that the exponent of peak kurtosis in size of `first` exceeds that of `second`.

  Args:
    first, second: size -> the names of its runs, one a seed, in the same order of seeds.
    margin: by how much.
    what, other: what they are, for the sentence.
  """
  def tests(configs: Configs) -> tuple[Test]:
    return (Test(f"exponent of {what} less that of {other}", "difference", margin, SPREAD,
                 min(map(len, first.values()), default=0)),)

  def decide(runs: Runs) -> Verdict:
    own, theirs = ([_slope(runs, {size: names[k] for size, names in side.items()})
                    for k in range(min(map(len, side.values())))] for side in (first, second))
    pairs = [pair for size in first for pair in zip(first[size], second[size])]
    return judged(
        [effects.paired(tests({})[0], own, theirs, len(own) == len(theirs) and share_order(
            pairs, {name: runs[name].config for pair in pairs for name in pair}))],
        {"exponents": {what: own, other: theirs}},
        f"exponents of peak kurtosis are {span(own)} in {what} and {span(theirs)} in {other}, by "
        "seed")

  return Judge({f"{name} at {size:g}": names for name, side in ((what, first), (other, second))
                for size, names in side.items()}, decide, tests)


def _slope(runs: Runs, names: Mapping[int, str]) -> float:
  """Slope of log peak kurtosis on log size, over the sizes of one seed."""
  peaks = np.array([runs[name].peak("kurtosis") for name in names.values()])
  with np.errstate(divide="ignore", invalid="ignore"):
    return float(np.polyfit(np.log([*names]), np.log(peaks), 1)[0])
