"""Rules on the curves of runs. Enters: names of runs, margins. Leaves: judges.

The text of a rule stands beside its judge in the study that declares it. What must hold of runs
before any rule reads them stands in of_jax.claims.judge.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from of_jax.claims.judge import Claim, Judge, Runs, Verdict, decided, problems, span, unjudged

__all__ = [
    "Claim", "falls", "growth", "larger_peaks", "outliers_at_best", "outliers_need_small_scale",
    "smaller_peaks"]

# Setting, such as a learning rate -> the names of its runs, one a seed.
Table = Mapping[str, Sequence[str]]
Pairs = Sequence[tuple[str, str]]


def outliers_at_best(pre: Table, op: Table, factor: float, name: str = "pre", other: str = "op",
                     also: Mapping[str, str] | None = None) -> Judge:
  """Judges that `op` has smaller outliers than `pre` at no worse loss, each at its best setting.

  Args:
    pre, op: setting (such as a learning rate) -> the names of its runs, one a seed.
    factor: how many times the kurtosis must differ.
    name, other: what to call `pre` and `op` in the summary.
    also: name of a run that was left out -> what it is; reported, and decides nothing.

  The best setting has the lowest mean of the final validation losses. There, the peak kurtosis
  of `pre`, averaged over seeds, must reach `factor` times that of `op`, and op's mean loss must
  not exceed pre's by more than the larger of the two half-ranges over seeds.
  """
  def decide(runs: Runs) -> Verdict:
    left, right = _at_best(runs, pre), _at_best(runs, op)
    ratio = statistics.fmean(left["peak_kurtosis"]) / statistics.fmean(right["peak_kurtosis"])
    tolerance = max(left["half_range"], right["half_range"])
    difference = right["mean_loss"] - left["mean_loss"]
    outside = _left_out(runs, also or {})
    return decided(
        ratio >= factor and difference <= tolerance, [ratio, difference, tolerance],
        {"pre": left, "op": right, "kurtosis_ratio": ratio, "kurtosis_ratio_needed": factor,
         "loss_op_minus_pre": difference, "loss_tolerance": tolerance},
        f"each at its best setting, {name}'s kurtosis peaks at {span(left['peak_kurtosis'])} "
        f"({left['best_setting']}) and {other}'s at {span(right['peak_kurtosis'])} "
        f"({right['best_setting']}), a factor of {ratio:.3g}; {other}'s mean validation loss is "
        f"{right['mean_loss']:.3f} against {left['mean_loss']:.3f} (difference {difference:+.3f}, "
        f"tolerance {tolerance:.3f}){outside}")

  return Judge(_groups(name, pre) | _groups(other, op), decide)


def _groups(what: str, table: Table) -> dict[str, Sequence[str]]:
  """Names each setting's runs as a group of their own; no setting is a group without runs."""
  return {f"{what} at {setting}": names for setting, names in table.items()} or {what: ()}


def _at_best(runs: Runs, table: Table) -> dict[str, Any]:
  """Chooses the setting of the lowest mean loss, and says what its runs came to."""
  means = {s: statistics.fmean(runs[n].final_loss for n in names) for s, names in table.items()}
  setting = min(means, key=lambda s: means[s])
  losses = [runs[n].final_loss for n in table[setting]]
  return {
      "best_setting": setting, "mean_loss_by_setting": means, "losses": losses,
      "mean_loss": means[setting], "half_range": (max(losses) - min(losses)) / 2,
      "peak_kurtosis": [runs[n].peak("kurtosis") for n in table[setting]]}


def _left_out(runs: Runs, also: Mapping[str, str]) -> str:
  """Says what the runs that a claim leaves out came to, for the end of a summary."""
  told = [f"{what} has loss {runs[name].final_loss:.3f} and kurtosis "
          f"{runs[name].peak('kurtosis'):.3g}" for name, what in also.items()
          if not problems(runs, [name])]
  return f"; not part of this claim: {', '.join(told)}" if told else ""


def outliers_need_small_scale(
    small: str, large: str, factor: float, ceiling: float, also: Mapping[str, str] | None = None,
) -> Judge:
  """Judges that run `small` grows outliers and run `large`, of a larger embedding scale, none.

  The peak kurtosis of `small` must reach `factor` times that of `large`, which must stay below
  `ceiling`. The runs in `also`, name -> what it is, are reported and do not decide.
  """
  def decide(runs: Runs) -> Verdict:
    peaks = {n: runs[n].peak("kurtosis") for n in (small, large, *(also or {})) if n in runs}
    scales = {n: runs[n].config.model.embedding_scale for n in (small, large)}
    correlations = {n: runs[n].mean("input_correlation") for n in (small, large)}
    ratio = peaks[small] / peaks[large]
    formed = "nothing forms" if peaks[large] < ceiling else "outlier features form as well"
    return decided(
        ratio >= factor and peaks[large] < ceiling, [ratio, peaks[large]],
        {"peak_kurtosis": peaks, "ratio": ratio, "ratio_needed": factor, "ceiling": ceiling,
         "mean_input_correlation": correlations},
        f"at embedding scale {scales[large]:g} {formed} in {runs[large].config.train.steps:,} "
        f"steps (pre's kurtosis peaks at {peaks[large]:.3g}), at scale {scales[small]:g} it peaks "
        f"at {peaks[small]:.3g}; the mean input correlation is {correlations[large]:.2f} against "
        f"{correlations[small]:.2f}{_left_out(runs, also or {})}")

  return Judge({"small scale": [small], "large scale": [large]}, decide)


def smaller_peaks(pairs: Pairs, what: str, metric: str = "kurtosis", factor: float = 1,
                  worse_by: float | None = None, also: Mapping[str, Pairs] | None = None) -> Judge:
  """Judges that in every pair the first run's peak of a metric is below the second's.

  Args:
    pairs: names of runs that differ in one thing only.
    what: the sentence's subject, such as "the smaller learning rate".
    metric: of the stream entering the blocks.
    factor: how many times the first the second must exceed.
    worse_by: inconclusive where a first's final validation loss is higher by more than this: what
      learns little grows little.
    also: what other runs are -> pairs of them that differ in the same thing; reported, and decide
      nothing.
  """
  def decide(runs: Runs) -> Verdict:
    for first, second in pairs:
      worse = runs[first].final_loss - runs[second].final_loss
      if worse_by is not None and worse > worse_by:
        return unjudged({first: f"its loss is {worse:.3f} above that of {second}, more than "
                                f"{worse_by:g}: it learnt too little to compare"})
    peaks = {n: runs[n].peak(metric) for pair in pairs for n in pair}
    holds = [factor * peaks[a] < peaks[b] for a, b in pairs]
    by = "" if factor == 1 else f" by a factor of {factor:g}"
    return decided(
        all(holds), peaks.values(),
        {f"peak_{metric}": peaks, "factor": factor, "pairs_that_hold": sum(holds),
         "pairs": len(pairs)},
        f"{what} has the smaller peak {metric}{by} in {sum(holds)} of {len(pairs)} pairs ("
        + ", ".join(f"{peaks[a]:.3g} against {peaks[b]:.3g}" for a, b in pairs) + ")"
        + _other_pairs(runs, also or {}, metric))

  return Judge({what: [n for pair in pairs for n in pair]}, decide)


def _other_pairs(runs: Runs, also: Mapping[str, Pairs], metric: str) -> str:
  """Says what the pairs that a claim leaves out came to, for the end of a summary."""
  told = [f"{what} {', '.join(compared)}" for what, pairs in also.items()
          if (compared := [f"{runs[a].peak(metric):.3g} against {runs[b].peak(metric):.3g}"
                           for a, b in pairs if not problems(runs, [a, b])])]
  return f"; not part of this claim: {'; '.join(told)}" if told else ""


def larger_peaks(pairs: Pairs, factor: float, what: str, other: str) -> Judge:
  """Judges that in every pair the first run's peak kurtosis is `factor` times the second's.

  Args:
    pairs: names of runs that differ in one thing only.
    factor: how many times, at least.
    what, other: what the first and the second of a pair are, for the sentence.
  """
  def decide(runs: Runs) -> Verdict:
    peaks = {n: runs[n].peak("kurtosis") for pair in pairs for n in pair}
    ratios = [peaks[a] / peaks[b] for a, b in pairs]
    return decided(
        min(ratios) >= factor, ratios,
        {"peak_kurtosis": peaks, "ratios": ratios, "ratio_needed": factor},
        f"{what}'s kurtosis peaks at {span([peaks[a] for a, _ in pairs])} and {other}'s at "
        f"{span([peaks[b] for _, b in pairs])}, a factor of {span(ratios)}")

  return Judge({what: [a for a, _ in pairs], other: [b for _, b in pairs]}, decide)


def falls(names: Sequence[str], what: str) -> Judge:
  """Judges that in every run the kurtosis of the worst layer is lower at the end than at first."""
  def decide(runs: Runs) -> Verdict:
    ends = {n: [float(np.max(runs[n].measured("kurtosis").values[i])) for i in (0, -1)]
            for n in names}
    fallen = sum(last < first for first, last in ends.values())
    return decided(
        fallen == len(names), (number for pair in ends.values() for number in pair),
        {"first_and_last_kurtosis": ends},
        f"{what}'s kurtosis falls in {fallen} of {len(names)} runs ("
        + ", ".join(f"{first:.3g} to {last:.3g}" for first, last in ends.values()) + ")")

  return Judge({what: names}, decide)


def growth(names: Sequence[str], factor: float) -> Judge:
  """Judges that kurtosis - 1 grows from the first logged step to its peak by `factor`, each run.

  One is subtracted because kurtosis starts at its smallest value, 1, and cannot exceed the width.
  Inconclusive where it starts at exactly 1: what grows from nothing has no factor.
  """
  def decide(runs: Runs) -> Verdict:
    first = {n: float(np.max(runs[n].measured("kurtosis").values[0])) for n in names}
    peaks = {n: runs[n].peak("kurtosis") for n in names}
    ratios = {n: (peaks[n] - 1) / (first[n] - 1) if first[n] > 1 else math.inf for n in names}
    return decided(
        min(ratios.values()) >= factor, ratios.values(),
        {"first_kurtosis": first, "peak_kurtosis": peaks, "growth": ratios,
         "growth_needed": factor},
        f"kurtosis - 1 grows by a factor of {span(list(ratios.values()))} over "
        f"{len(names)} runs")

  return Judge({"growing": names}, decide)
