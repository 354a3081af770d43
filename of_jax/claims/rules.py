"""Claims and the rules that judge them. Enters: runs by name. Leaves: a verdict with evidence.

A claim is declared with its rule before the runs exist. The functions here make the judges; the
text of a rule stands beside its judge in the study that declares it.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from of_jax.analysis.runs import Run

Runs = Mapping[str, Run]


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A rule's answer: `evidence` holds the numbers it read, `summary` one plain sentence."""

  verdict: Literal["reproduced", "not reproduced", "inconclusive"]
  evidence: Mapping[str, Any]
  summary: str


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement that runs can support or contradict.

  Attributes:
    id: short name, unique in its study.
    statement: what is claimed.
    paper: what the paper reports, with its numbers and conditions.
    rule: exactly which numbers decide, in words.
    judge: the rule as a function of the study's runs by name.
  """

  id: str
  statement: str
  paper: str
  rule: str
  judge: Callable[[Runs], Verdict]


def problems(runs: Runs, names: Sequence[str]) -> dict[str, str]:
  """Finds why runs cannot be judged, by name; empty if all can."""
  found = {}
  for name in names:
    run = runs.get(name)
    if run is None:
      found[name] = "missing"
    elif not run.finished:
      found[name] = f"not finished (step {run.steps_done} of {run.config.train.steps})"
    elif run.diverged:
      found[name] = "diverged: a loss or a kurtosis is not finite"
    elif not run.eval.loss.size:
      found[name] = "was never evaluated"
    elif not run.measured("kurtosis").values.size:
      found[name] = "no kurtosis was measured"
  # Losses on different tokens do not compare; a folder of text may change between two runs.
  data = {n: tuple(runs[n].env.get(k) for k in ("corpus_sha256", "tokenizer_sha256"))
          for n in names if n in runs}
  for name in data:
    if data[name] != data[next(iter(data))] and name not in found:
      found[name] = "read another corpus than the first run"
  return found


def outliers_at_best(
    pre: Mapping[str, Sequence[str]], op: Mapping[str, Sequence[str]], factor: float,
    name: str = "pre", other: str = "op",
) -> Callable[[Runs], Verdict]:
  """Judges that `op` has smaller outliers than `pre` at no worse loss, each at its best setting.

  Args:
    pre, op: setting (such as a learning rate) -> the names of its runs, one a seed.
    factor: how many times the kurtosis must differ.
    name, other: what to call `pre` and `op` in the summary.

  The best setting has the lowest mean of the final validation losses. There, the peak kurtosis
  of `pre`, averaged over seeds, must reach `factor` times that of `op`, and op's mean loss must
  not exceed pre's by more than the larger of the two half-ranges over seeds.
  """
  names = [n for table in (pre, op) for seeds in table.values() for n in seeds]

  def best(runs: Runs, table: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    means = {s: _mean_loss(runs, seeds) for s, seeds in table.items()}
    setting = min(means, key=lambda s: means[s])
    losses = [runs[n].final_loss for n in table[setting]]
    return {
        "best_setting": setting, "mean_loss_by_setting": means, "losses": losses,
        "mean_loss": means[setting], "half_range": (max(losses) - min(losses)) / 2,
        "peak_kurtosis": [runs[n].peak("kurtosis") for n in table[setting]]}

  def judge(runs: Runs) -> Verdict:
    found = problems(runs, names)
    if found:
      return unjudged(found)
    left, right = best(runs, pre), best(runs, op)
    ratio = statistics.fmean(left["peak_kurtosis"]) / statistics.fmean(right["peak_kurtosis"])
    tolerance = max(left["half_range"], right["half_range"])
    difference = right["mean_loss"] - left["mean_loss"]
    return Verdict(
        verdict(ratio >= factor and difference <= tolerance),
        {"pre": left, "op": right, "kurtosis_ratio": ratio, "kurtosis_ratio_needed": factor,
         "loss_op_minus_pre": difference, "loss_tolerance": tolerance},
        f"each at its best setting, {name}'s kurtosis peaks at {span(left['peak_kurtosis'])} "
        f"({left['best_setting']}) and {other}'s at {span(right['peak_kurtosis'])} "
        f"({right['best_setting']}), a factor of {ratio:.3g}; {other}'s mean validation loss is "
        f"{right['mean_loss']:.3f} against {left['mean_loss']:.3f} (difference {difference:+.3f}, "
        f"tolerance {tolerance:.3f})")

  return judge


def outliers_need_small_scale(
    small: str, large: str, factor: float, ceiling: float, also: Sequence[str] = (),
) -> Callable[[Runs], Verdict]:
  """Judges that run `small` grows outliers and run `large`, of a larger embedding scale, none.

  The peak kurtosis of `small` must reach `factor` times that of `large`, which must stay below
  `ceiling`. The runs in `also` are reported and do not decide.
  """
  def judge(runs: Runs) -> Verdict:
    found = problems(runs, [small, large])
    if found:
      return unjudged(found)
    peaks = {n: runs[n].peak("kurtosis") for n in (small, large, *also) if n in runs}
    scales = {n: runs[n].config.model.embedding_scale for n in (small, large)}
    correlations = {n: runs[n].mean("input_correlation") for n in (small, large)}
    ratio = peaks[small] / peaks[large]
    formed = "nothing forms" if peaks[large] < ceiling else "outlier features form as well"
    return Verdict(
        verdict(ratio >= factor and peaks[large] < ceiling),
        {"peak_kurtosis": peaks, "ratio": ratio, "ratio_needed": factor, "ceiling": ceiling,
         "mean_input_correlation": correlations},
        f"at embedding scale {scales[large]:g} {formed} in {runs[large].config.train.steps:,} "
        f"steps (pre's kurtosis peaks at {peaks[large]:.3g}), at scale {scales[small]:g} it peaks "
        f"at {peaks[small]:.3g}; the mean input correlation is {correlations[large]:.2f} against "
        f"{correlations[small]:.2f}")

  return judge


def smaller_peaks(pairs: Sequence[tuple[str, str]], what: str, metric: str = "kurtosis",
                  factor: float = 1, worse_by: float | None = None) -> Callable[[Runs], Verdict]:
  """Judges that in every pair the first run's peak of a metric is below the second's.

  Args:
    pairs: names of runs that differ in one thing only.
    what: the sentence's subject, such as "the smaller learning rate".
    metric: of the stream entering the blocks.
    factor: how many times the first the second must exceed.
    worse_by: inconclusive where a first's final validation loss is higher by more than this: what
      learns little grows little.
  """
  def judge(runs: Runs) -> Verdict:
    found = problems(runs, [n for pair in pairs for n in pair])
    if found:
      return unjudged(found)
    for first, second in pairs:
      worse = runs[first].final_loss - runs[second].final_loss
      if worse_by is not None and worse > worse_by:
        return unjudged({first: f"its loss is {worse:.3f} above that of {second}, more than "
                                f"{worse_by:g}: it learnt too little to compare"})
    peaks = {n: runs[n].peak(metric) for pair in pairs for n in pair}
    holds = [factor * peaks[a] < peaks[b] for a, b in pairs]
    by = "" if factor == 1 else f" by a factor of {factor:g}"
    return Verdict(
        verdict(all(holds)), {f"peak_{metric}": peaks, "factor": factor,
                               "pairs_that_hold": sum(holds), "pairs": len(pairs)},
        f"{what} has the smaller peak {metric}{by} in {sum(holds)} of {len(pairs)} pairs ("
        + ", ".join(f"{peaks[a]:.3g} against {peaks[b]:.3g}" for a, b in pairs) + ")")

  return judge


def larger_peaks(pairs: Sequence[tuple[str, str]], factor: float, what: str, other: str
                 ) -> Callable[[Runs], Verdict]:
  """Judges that in every pair the first run's peak kurtosis is `factor` times the second's.

  Args:
    pairs: names of runs that differ in one thing only.
    factor: how many times, at least.
    what, other: what the first and the second of a pair are, for the sentence.
  """
  def judge(runs: Runs) -> Verdict:
    found = problems(runs, [n for pair in pairs for n in pair])
    if found:
      return unjudged(found)
    peaks = {n: runs[n].peak("kurtosis") for pair in pairs for n in pair}
    ratios = [peaks[a] / peaks[b] for a, b in pairs]
    return Verdict(
        verdict(min(ratios) >= factor),
        {"peak_kurtosis": peaks, "ratios": ratios, "ratio_needed": factor},
        f"{what}'s kurtosis peaks at {span([peaks[a] for a, _ in pairs])} and {other}'s at "
        f"{span([peaks[b] for _, b in pairs])}, a factor of {span(ratios)}")

  return judge


def falls(names: Sequence[str], what: str) -> Callable[[Runs], Verdict]:
  """Judges that in every run the kurtosis of the worst layer is lower at the end than at first."""
  def judge(runs: Runs) -> Verdict:
    found = problems(runs, names)
    if found:
      return unjudged(found)
    ends = {n: [float(np.max(runs[n].measured("kurtosis").values[i])) for i in (0, -1)]
            for n in names}
    fallen = sum(last < first for first, last in ends.values())
    return Verdict(
        verdict(fallen == len(names)), {"first_and_last_kurtosis": ends},
        f"{what}'s kurtosis falls in {fallen} of {len(names)} runs ("
        + ", ".join(f"{first:.3g} to {last:.3g}" for first, last in ends.values()) + ")")

  return judge


def growth(names: Sequence[str], factor: float) -> Callable[[Runs], Verdict]:
  """Judges that kurtosis - 1 grows from the first logged step to its peak by `factor`, each run.

  One is subtracted because kurtosis starts at its smallest value, 1, and cannot exceed the width.
  """
  def judge(runs: Runs) -> Verdict:
    found = problems(runs, names)
    if found:
      return unjudged(found)
    first = {n: float(np.max(runs[n].measured("kurtosis").values[0])) for n in names}
    peaks = {n: runs[n].peak("kurtosis") for n in names}
    ratios = {n: (peaks[n] - 1) / max(first[n] - 1, 1e-9) for n in names}
    return Verdict(
        verdict(min(ratios.values()) >= factor),
        {"first_kurtosis": first, "peak_kurtosis": peaks, "growth": ratios,
         "growth_needed": factor},
        f"kurtosis - 1 grows by a factor of {span(list(ratios.values()))} over "
        f"{len(names)} runs")

  return judge


def unjudged(found: Mapping[str, str]) -> Verdict:
  """Makes the verdict `inconclusive`, which names the runs at fault."""
  reason = "runs missing" if set(found.values()) == {"missing"} else "runs cannot be judged"
  by_why: dict[str, list[str]] = {}
  for name, why in found.items():
    by_why.setdefault(why, []).append(name)
  parts = [f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}: {why}"
           for why, names in by_why.items()]
  return Verdict("inconclusive", {"reason": reason, "runs": dict(found)}, "; ".join(parts))


def verdict(holds: bool) -> Literal["reproduced", "not reproduced"]:
  """Chooses the word for a rule that was judged."""
  return "reproduced" if holds else "not reproduced"


def span(values: Sequence[float], form: str = ".3g") -> str:
  """Writes the smallest and the largest value, as one number where they print alike."""
  low, high = format(min(values), form), format(max(values), form)
  return low if low == high else f"{low} to {high}"


def _mean_loss(runs: Runs, names: Sequence[str]) -> float:
  return statistics.fmean(runs[n].final_loss for n in names)
