"""Rules on what was found in checkpoints. Enters: runs with their analyses' files. Leaves: judges,
as of_jax.claims.rules makes them of curves.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from of_jax.analysis.runs import read_analysis
from of_jax.claims import effects
from of_jax.claims.effects import Effect, Test, judged
from of_jax.claims.judge import Judge, Runs, Verdict, span, undefined, unjudged
from of_jax.config import Config

# What a rule finds in one run's analysis: the value of each part, what was read, a few words; or a
# sentence that says why there is nothing to judge.
Found = tuple[Sequence[float], dict[str, Any], str] | str
Read = Callable[[Mapping[str, Any]], Found]

# Assumed between seeds, of logarithms; and the least factor of "more" and "less".
SPREAD, MORE = 0.25, 1.1
_NO_DIMENSION = "no outlier dimension at the end"


def over_runs(analysis: str, names: Sequence[str], parts: Sequence[Test], read: Read,
              from_start: bool = False) -> Judge:
  """Judges by what `read` finds in each run, a seed each.

  Args:
    analysis: which file.
    names: of runs, one a seed.
    parts: with their margins, in the order of the values that `read` gives.
    read: looks at one run's analysis, whose last checkpoint is that of the run's last step.
    from_start: whether the rule compares with step 0, which must have been analysed then.
  """
  tests = [dataclasses.replace(part, seeds=len(names)) for part in parts]

  def decide(runs: Runs) -> Verdict:
    found: dict[str, str] = {}
    read_of: dict[str, tuple[Sequence[float], dict[str, Any], str]] = {}
    for name in names:
      result = _read(read_analysis(runs[name], analysis), analysis, read, from_start,
                     runs[name].config.train.steps)
      if isinstance(result, str):
        found[name] = result
      else:
        read_of[name] = result
    if found:
      return unjudged(found)
    evidence = {name: result[1] for name, result in read_of.items()}
    summary = "; ".join(f"{name}: {result[2]}" for name, result in read_of.items())
    numbers = [number for result in read_of.values() for number in _numbers(result[1])]
    if not all(math.isfinite(number) for number in numbers):
      return undefined(evidence, summary)
    return judged([_effect(test, [result[0][i] for result in read_of.values()])
                   for i, test in enumerate(tests)], evidence, summary)

  def declared(configs: Mapping[str, Config]) -> list[Test]:
    return tests

  return Judge({analysis: names}, decide, declared)


def _effect(test: Test, values: Sequence[float]) -> Effect:
  """Makes an effect of a value a seed, or of how many seeds it is above 0 in."""
  own = effects.mean(test, values)
  if test.effect != "share of seeds":
    return own
  return dataclasses.replace(own, values={"holds": [value > 0 for value in values]})


def _log(over: float, under: float) -> float:
  """Logarithm of a ratio; infinite where one side is 0."""
  if over <= 0 or under <= 0:
    return math.inf if over > 0 else -math.inf if under > 0 else math.nan
  return math.log(over / under)


def _read(value: Mapping[str, Any] | None, analysis: str, read: Read, from_start: bool, last: int
          ) -> Found:
  """Reads one run's analysis, if it is there and reaches to the run's last step, `last`."""
  if value is None:
    return f"has no {analysis}.json"
  steps = [entry["step"] for entry in value["steps"]]
  if not steps or max(steps) != last:
    return f"{analysis}.json ends at step {max(steps, default=0)} of {last}"
  if from_start and 0 not in steps:
    return f"{analysis}.json has no checkpoint at step 0"
  try:
    return read(value)
  except (TypeError, ValueError, ArithmeticError):
    # What is undefined is null there, and what has no layer is an empty list.
    return f"{analysis}.json holds nothing where the rule needs a number"


def _numbers(value: Any) -> list[float]:
  """Lists all numbers in nested lists and dictionaries; null counts as undefined."""
  if isinstance(value, Mapping):
    value = list(value.values())
  if isinstance(value, Sequence) and not isinstance(value, str):
    return [number for one in value for number in _numbers(one)]
  return [] if isinstance(value, str) else [math.nan if value is None else float(value)]


def dimensions_appear(names: Sequence[str], until: int) -> Judge:
  """Judges that outlier dimensions appear: none at step 0, some at every checkpoint from `until`.

  Inconclusive where there is no checkpoint at step 0, or none from step `until` on.
  """
  def read(analysis: Mapping[str, Any]) -> Found:
    counts = {entry["step"]: len(entry["outlier_dimensions"]) for entry in analysis["steps"]}
    late = [count for step, count in counts.items() if step >= until]
    if not late:
      return f"too short: no checkpoint from step {until} on"
    holds = counts[0] == 0 and all(late)
    return [float(holds)], {"outlier_dimensions_by_step": counts}, (
        f"{counts[0]} outlier dimensions at step 0, {counts[max(counts)]} at step {max(counts)}")

  return over_runs("outlier_dimensions", names, (
      Test("seeds in which they appear", "share of seeds", 0.5, 0, 0),), read, from_start=True)


def ablation_hurts(names: Sequence[str], least: float, factor: float) -> Judge:
  """Judges that surprisal rises without outlier dimensions by `least` nats more than by `factor`
  times what it does without random ones."""
  def read(analysis: Mapping[str, Any]) -> Found:
    last = analysis["steps"][-1]
    if last["without_outlier_dimensions"] is None or last["without_random"] is None:
      return _NO_DIMENSION
    rise, by_chance = (last[mode]["surprisal"] - last["full"]["surprisal"]
                       for mode in ("without_outlier_dimensions", "without_random"))
    accuracy = {mode: last[mode]["accuracy"] for mode in (
        "full", "without_outlier_dimensions", "without_random")}
    return ([rise - factor * abs(by_chance)],
            {"dimensions": len(last["outlier_dimensions"]), "surprisal_rise": rise,
             "surprisal_rise_random": by_chance, "accuracy": accuracy},
            f"surprisal rises by {rise:.3f} nats without {len(last['outlier_dimensions'])} outlier "
            f"dimensions and by {by_chance:.3f} without as many random ones")

  return over_runs("outlier_dimensions", names, (
      Test(f"rise less {factor:g} times that of random dimensions", "difference", least, 0.05, 0),
  ), read)


def alone_they_predict_few(names: Sequence[str], share: float) -> Judge:
  """Judges that outlier dimensions alone predict at most `share` of the distinct tokens that all
  dimensions predict, and ones whose share of the corpus is lower by a tenth at most."""
  def read(analysis: Mapping[str, Any]) -> Found:
    last = analysis["steps"][-1]
    alone, full = last["only_outlier_dimensions"], last["full"]
    if alone is None:
      return _NO_DIMENSION
    distinct = [alone["distinct_predictions"], full["distinct_predictions"]]
    common = [alone["mean_corpus_share_of_predicted"], full["mean_corpus_share_of_predicted"]]
    return ([_log(distinct[1], distinct[0]), _log(common[0], common[1])],
            {"distinct_predictions_alone_and_full": distinct,
             "mean_corpus_share_alone_and_full": common},
            f"alone they predict {distinct[0]} distinct tokens of mean corpus share "
            f"{common[0]:.2%}, all dimensions {distinct[1]} of {common[1]:.2%}")

  return over_runs("outlier_dimensions", names, (
      Test("distinct tokens of all over alone", "log ratio", -math.log(share), SPREAD, 0),
      Test("mean corpus share, alone over all", "log ratio", -math.log(MORE), SPREAD, 0)), read)


def boosted(names: Sequence[str], writes: Sequence[str]) -> Judge:
  """Judges that the median outlier dimension gets a tenth more of each of `writes` than the median
  one."""
  def read(analysis: Mapping[str, Any]) -> Found:
    last = analysis["steps"][-1]
    ratios = {name: (last["boost"].get(name) or {}).get("ratios") for name in writes}
    if not last["outlier_dimensions"]:
      return _NO_DIMENSION
    lacking = [name for name in writes if not ratios[name]]
    if lacking or not writes:
      return f"nothing writes to the dimensions as {', '.join(lacking) or 'named'}"
    medians = {name: statistics.median(values) for name, values in ratios.items() if values}
    return ([_log(medians[name], 1) for name in writes], {"median_ratio": medians},
            ", ".join(f"{name.replace('_', ' ')} {value:.2f} times the usual"
                      for name, value in medians.items()))

  return over_runs("outlier_dimensions", names, [
      Test(f"{name.replace('_', ' ')} over the usual", "log ratio", math.log(MORE), SPREAD, 0)
      for name in writes or ("nothing",)], read)


def first_layer_uses_less(names: Sequence[str], share: float) -> Judge:
  """Judges that at the end the first layer uses at most `share` as many units as the last."""
  def read(analysis: Mapping[str, Any]) -> Found:
    used = [row["active_fraction_batch"] for row in analysis["steps"][-1]["layers"]]
    if len(used) < 2:
      return "one layer alone"
    if not used[0] or not used[-1]:
      return f"no unit of the {'last' if used[0] else 'first'} layer is active"
    return ([_log(used[-1], used[0])], {"active_fraction_batch_by_layer": used},
            f"{used[0]:.1%} of units in layer 0 and {used[-1]:.1%} in layer {len(used) - 1}, in "
            f"{analysis['batch_tokens']:,} tokens")

  return over_runs("sparsity", names, (
      Test("units used by the last layer over the first", "log ratio", -math.log(share), SPREAD,
           0),), read)


def token_use_falls(names: Sequence[str]) -> Judge:
  """Judges that the share of units active for a token, mean over layers, is lower at the end
  by a tenth."""
  def read(analysis: Mapping[str, Any]) -> Found:
    means = {entry["step"]: statistics.fmean(row["active_fraction_token"]
                                             for row in entry["layers"])
             for entry in analysis["steps"]}
    first, last = means[min(means)], means[max(means)]
    return ([_log(first, last)], {"active_fraction_token_by_step": means},
            f"from {first:.1%} to {last:.1%} of units for a token")

  return over_runs("sparsity", names, (
      Test("units for a token, at first over at the end", "log ratio", math.log(MORE), SPREAD, 0),
  ), read, from_start=True)


def units_die(names: Sequence[str], least: float) -> Judge:
  """Judges that in some layer the share of dead units grows by `least`."""
  def read(analysis: Mapping[str, Any]) -> Found:
    first, last = ([row["dead_fraction"] for row in analysis["steps"][i]["layers"]]
                   for i in (0, -1))
    grown = [b - a for a, b in zip(first, last)]
    revived = max(row["revived"] for entry in analysis["steps"] for row in entry["layers"])
    return ([max(grown)],
            {"dead_at_first_by_layer": first, "dead_at_the_end_by_layer": last,
             "largest_share_of_dead_revived_between_checkpoints": revived},
            f"dead units from {span(first, '.1%')} to {span(last, '.1%')}, by layer")

  return over_runs("sparsity", names, (
      Test("growth of the share of dead units", "difference", least, 0.05, 0),), read,
      from_start=True)


def prunable(names: Sequence[str], least: float, most: float) -> Judge:
  """Judges that at least the share `least` of units is rarely active and costs `most` nats or less.
  """
  def read(analysis: Mapping[str, Any]) -> Found:
    pruned = analysis.get("pruning")
    if not pruned:
      return "nothing was pruned"
    return ([pruned["share"], -pruned["loss_change"]], dict(pruned),
            f"{pruned['share']:.1%} of units pruned, loss {pruned['loss_change']:+.4f} nats")

  return over_runs("sparsity", names, (
      Test("share of units pruned", "difference", least, 0.05, 0),
      Test("loss with less that without them", "difference", -most, 0.005, 0)), read)
