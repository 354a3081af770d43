"""Rules on the curves of runs. Enters: names of runs, margins. Leaves: judges.

The text of a rule stands beside its judge in the study that declares it. What must hold of runs
before any rule reads them stands in of_jax.claims.judge, how an effect is judged against its margin
in of_jax.claims.effects.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from of_jax.analysis.runs import Run
from of_jax.claims import effects
from of_jax.claims.effects import Effect, Floats, Test, judged
from of_jax.claims.judge import Claim, Judge, Runs, Verdict, problems, span, unjudged
from of_jax.claims.pairs import Pairs, by_setting, share_order
from of_jax.config import Config

__all__ = ["Claim", "larger_peaks", "outliers_at_best", "outliers_need_small_scale",
           "smaller_peaks"]

# Setting, such as a learning rate -> the names of its runs, one a seed.
Table = Mapping[str, Sequence[str]]
Configs = Mapping[str, Config]
# Assumed between seeds where there is one: of the logarithm of peak kurtosis, and nats.
SPREAD, LOSS_SPREAD = 0.25, 0.03
# Nats a token by which a loss that is "no worse" may be higher, and the least factor of "smaller".
NO_WORSE, SMALLER = 0.05, 1.1


def outliers_at_best(pre: Table, op: Table, factor: float, name: str = "pre", other: str = "op",
                     also: Mapping[str, str] | None = None, no_worse: float = NO_WORSE) -> Judge:
  """Judges that `op` has smaller outliers than `pre` at no worse loss, each at its best setting.

  Args:
    pre, op: setting (such as a learning rate) -> the names of its runs, one a seed, in the same
      order of seeds.
    factor: how many times the kurtosis must differ.
    name, other: what to call `pre` and `op` in the summary.
    also: name of a run that was left out -> what it is; reported, and decides nothing.
    no_worse: nats by which op's loss may be higher.

  The best setting has the lowest mean of the final validation losses, and is chosen again for each
  set of seeds of which the intervals are made. There, the mean over seeds of the logarithm of peak
  kurtosis of `pre` must exceed that of `op` by log `factor`, and op's mean loss must not exceed
  pre's by `no_worse`.
  """
  def tests(configs: Configs) -> tuple[Test, Test]:
    seeds = min(map(len, [*pre.values(), *op.values()]), default=0)
    choices = max(len(pre), len(op))
    return (Test(f"peak kurtosis of {name} over {other}", "log ratio", math.log(factor), SPREAD,
                 seeds, choices),
            Test(f"loss of {name} less {other}", "difference", -no_worse, LOSS_SPREAD, seeds,
                 choices))

  def decide(runs: Runs) -> Verdict:
    left, right = _at_best(runs, pre), _at_best(runs, op)
    ratio = statistics.fmean(left["peak_kurtosis"]) / statistics.fmean(right["peak_kurtosis"])
    difference = right["mean_loss"] - left["mean_loss"]
    uneven = [table for table in (pre, op) if len({*map(len, table.values())}) > 1]
    if uneven:
      return unjudged({names[0]: "settings have different numbers of seeds"
                       for names in uneven[0].values()})
    kurtosis, loss = tests({})
    found = [effect_at_best(runs, pre, op, kurtosis, lambda run: _log(run.peak("kurtosis"))),
             effect_at_best(runs, pre, op, loss, lambda run: run.final_loss)]
    return judged(
        found,
        {"pre": left, "op": right, "kurtosis_ratio": ratio, "kurtosis_ratio_needed": factor,
         "loss_op_minus_pre": difference, "loss_tolerance": no_worse},
        f"each at its best setting, {name}'s kurtosis peaks at {span(left['peak_kurtosis'])} "
        f"({left['best_setting']}) and {other}'s at {span(right['peak_kurtosis'])} "
        f"({right['best_setting']}), a factor of {ratio:.3g}; {other}'s mean validation loss is "
        f"{right['mean_loss']:.3f} against {left['mean_loss']:.3f} (difference {difference:+.3f}, "
        f"tolerance {no_worse:.3f})", _left_out(runs, also or {}))

  return Judge(_groups(name, pre) | _groups(other, op), decide, tests)


def best(losses: Floats, values: Floats) -> Callable[..., Floats]:
  """Makes the statistic of the mean of `values` at the setting of the lowest mean loss, both
  [settings, seeds], from positions of seeds [..., n]."""
  def statistic(i: Any) -> Floats:
    means = losses[:, i].mean(-1)
    found: Floats = np.take_along_axis(
        values[:, i].mean(-1), np.argmin(means, 0)[None], 0)[0]
    return found

  return statistic


def best_of_two(first: Callable[..., Floats], second: Callable[..., Floats], is_paired: bool
                ) -> Callable[..., Floats]:
  """Makes the statistic of one side's less the other's, of one group of seeds or of two."""
  if is_paired:
    return lambda i: first(i) - second(i)
  return lambda i, j: first(i) - second(j)


def effect_at_best(runs: Runs, pre: Table, op: Table, test: Test, read: Callable[[Run], float]
                   ) -> Effect:
  """Makes the effect of what `read` gives, each side at its best setting."""
  sides = []
  for table in (pre, op):
    losses = np.array([[runs[n].final_loss for n in names] for names in table.values()])
    values = np.array([[read(runs[n]) for n in names] for names in table.values()])
    sides.append((best(losses, values), losses.shape[1]))
  rows = [*pre.values(), *op.values()]
  configs = {name: runs[name].config for names in rows for name in names}
  is_paired = len({*map(len, rows)}) == 1 and share_order(
      [(rows[0][k], names[k]) for names in rows for k in range(len(rows[0]))], configs)
  counts = (sides[0][1],) if is_paired else (sides[0][1], sides[1][1])
  return Effect(test, best_of_two(sides[0][0], sides[1][0], is_paired), counts, {})


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
    small: str | Sequence[str], large: str | Sequence[str], factor: float, ceiling: float,
    also: Mapping[str, str] | None = None,
) -> Judge:
  """Judges that runs `small` grow outliers and runs `large`, of a larger embedding scale, none.

  The peak kurtosis of `small` must reach `factor` times that of `large`, which must stay below
  `ceiling`. Each is a run or several that differ in seed. Those in `also`, name -> what it is, are
  reported and do not decide.
  """
  few, many = ([one] if isinstance(one, str) else list(one) for one in (small, large))

  def tests(configs: Configs) -> tuple[Test, Test]:
    return (Test("peak kurtosis at the small scale over the large", "log ratio", math.log(factor),
                 SPREAD, min(len(few), len(many))),
            Test("1 over peak kurtosis at the large scale", "log ratio", -math.log(ceiling),
                 SPREAD, len(many)))

  def decide(runs: Runs) -> Verdict:
    peaks = {n: runs[n].peak("kurtosis") for n in (*few, *many, *(also or {})) if n in runs}
    scales = {n: runs[n].config.model.embedding_scale for n in (*few, *many)}
    correlations = {n: runs[n].mean("input_correlation") for n in (*few, *many)}
    left, right = (_mean([peaks[n] for n in names]) for names in (few, many))
    between, below = tests({})
    formed = "nothing forms" if right < ceiling else "outlier features form as well"
    return judged(
        [_peaks(between, runs, list(zip(few, many)) if len(few) == len(many) else None, few, many),
         effects.mean(below, [-math.log(peaks[n]) for n in many])],
        {"peak_kurtosis": peaks, "ratio": left / right, "ratio_needed": factor,
         "ceiling": ceiling, "mean_input_correlation": correlations},
        f"at embedding scale {scales[many[0]]:g} {formed} in "
        f"{runs[many[0]].config.train.steps:,} steps (pre's kurtosis peaks at {right:.3g}), at "
        f"scale {scales[few[0]]:g} it peaks at {left:.3g}; the mean input correlation is "
        f"{_mean([correlations[n] for n in many]):.2f} against "
        f"{_mean([correlations[n] for n in few]):.2f}", _left_out(runs, also or {}))

  return Judge({"small scale": few, "large scale": many}, decide, tests)


def _mean(values: Sequence[float]) -> float:
  return statistics.fmean(values)


def _peaks(test: Test, runs: Runs, pairs: Pairs | None, first: Sequence[str],
           second: Sequence[str], metric: str = "kurtosis") -> Effect:
  """Makes the effect of the logarithm of one peak over another."""
  configs = {name: runs[name].config for name in (*first, *second)}
  x, y = ([_log(runs[n].peak(metric)) for n in names] for names in (first, second))
  return effects.paired(test, x, y, pairs is not None and share_order(pairs, configs))


def _log(value: float) -> float:
  return math.log(value) if value > 0 else math.nan


def _of_pairs(pairs: Pairs, runs: Runs, test: Test, metric: str, flipped: bool) -> list[Effect]:
  """Makes the effects of pairs, one for those that differ in seed alone."""
  found = []
  for group in by_setting(pairs, {n: runs[n].config for pair in pairs for n in pair}):
    own = [(b, a) for a, b in group] if flipped else group
    named = Test(f"{test.name}, {own[0][0]} over {own[0][1]}", test.effect, test.margin,
                 test.spread, len(own))
    found.append(_peaks(named, runs, own, [a for a, _ in own], [b for _, b in own], metric))
  return found


def _tests_of_pairs(pairs: Pairs, name: str, factor: float) -> Callable[[Configs], list[Test]]:
  def tests(configs: Configs) -> list[Test]:
    return [Test(name, "log ratio", math.log(factor), SPREAD, len(group))
            for group in by_setting(pairs, configs)]

  return tests


def smaller_peaks(pairs: Pairs, what: str, metric: str = "kurtosis", factor: float = SMALLER,
                  worse_by: float | None = None, also: Mapping[str, Pairs] | None = None) -> Judge:
  """Judges that of pairs the first run's peak of a metric is below the second's.

  Pairs that differ in seed alone are one part of the claim; each part must hold.

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
    test = Test(f"peak {metric}", "log ratio", math.log(factor), SPREAD, 0)
    return judged(
        _of_pairs(pairs, runs, test, metric, flipped=True),
        {f"peak_{metric}": peaks, "factor": factor, "pairs_that_hold": sum(holds),
         "pairs": len(pairs)},
        f"{what} has the smaller peak {metric} by a factor of {factor:g} in {sum(holds)} of "
        f"{len(pairs)} pairs ("
        + ", ".join(f"{peaks[a]:.3g} against {peaks[b]:.3g}" for a, b in pairs) + ")",
        _other_pairs(runs, also or {}, metric))

  return Judge({what: [n for pair in pairs for n in pair]}, decide,
               _tests_of_pairs(pairs, f"peak {metric}", factor))


def _other_pairs(runs: Runs, also: Mapping[str, Pairs], metric: str) -> str:
  """Says what the pairs that a claim leaves out came to, for the end of a summary."""
  told = [f"{what} {', '.join(compared)}" for what, pairs in also.items()
          if (compared := [f"{runs[a].peak(metric):.3g} against {runs[b].peak(metric):.3g}"
                           for a, b in pairs if not problems(runs, [a, b])])]
  return f"; not part of this claim: {'; '.join(told)}" if told else ""


def larger_peaks(pairs: Pairs, factor: float, what: str, other: str) -> Judge:
  """Judges that of pairs the first run's peak kurtosis is `factor` times the second's.

  Args:
    pairs: names of runs that differ in one thing only; those that differ in seed alone are a part.
    factor: how many times, at least.
    what, other: what the first and the second of a pair are, for the sentence.
  """
  def decide(runs: Runs) -> Verdict:
    peaks = {n: runs[n].peak("kurtosis") for pair in pairs for n in pair}
    ratios = [peaks[a] / peaks[b] for a, b in pairs]
    test = Test("peak kurtosis", "log ratio", math.log(factor), SPREAD, 0)
    return judged(
        _of_pairs(pairs, runs, test, "kurtosis", flipped=False),
        {"peak_kurtosis": peaks, "ratios": ratios, "ratio_needed": factor},
        f"{what}'s kurtosis peaks at {span([peaks[a] for a, _ in pairs])} and {other}'s at "
        f"{span([peaks[b] for _, b in pairs])}, a factor of {span(ratios)}")

  return Judge({what: [a for a, _ in pairs], other: [b for _, b in pairs]}, decide,
               _tests_of_pairs(pairs, "peak kurtosis", factor))
