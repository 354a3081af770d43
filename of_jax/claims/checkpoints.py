"""Rules on what was found in checkpoints. Enters: runs with their analyses' files. Leaves: judges,
as of_jax.claims.rules makes them of curves.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from of_jax.analysis.runs import read_analysis
from of_jax.claims.rules import Runs, Verdict, problems, span, unjudged, verdict

Judge = Callable[[Runs], Verdict]
# An analysis of one run -> (whether the claim holds, what was read, a few words); None where there
# is nothing to look at.
Read = Callable[[Mapping[str, Any]], tuple[bool, dict[str, Any], str] | None]


def in_every_run(analysis: str, names: Sequence[str], read: Read, nothing: str = "") -> Judge:
  """Judges that what `read` looks for holds in every run.

  Args:
    analysis: which file.
    names: of runs, one a seed.
    nothing: why the claim is not judged where `read` has nothing to look at.
  """
  def judge(runs: Runs) -> Verdict:
    found = problems(runs, names)
    analyses = {}
    for name in names:
      if name not in found:
        value = read_analysis(runs[name], analysis)
        if value is None:
          found[name] = f"has no {analysis}.json"
        else:
          analyses[name] = value
    if found:
      return unjudged(found)
    results = {name: read(value) for name, value in analyses.items()}
    empty = [name for name, result in results.items() if result is None]
    if empty:
      return unjudged(dict.fromkeys(empty, nothing))
    held = {name: result for name, result in results.items() if result is not None}
    return Verdict(
        verdict(all(result[0] for result in held.values())),
        {name: result[1] for name, result in held.items()},
        "; ".join(f"{name}: {result[2]}" for name, result in held.items()))

  return judge


def dimensions_appear(names: Sequence[str], until: int) -> Judge:
  """Judges that outlier dimensions appear: none at the first checkpoint, some from `until` on."""
  def read(analysis: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str]:
    counts = {entry["step"]: len(entry["outlier_dimensions"]) for entry in analysis["steps"]}
    first, last = min(counts), max(counts)
    holds = counts[first] == 0 and all(n > 0 for step, n in counts.items() if step >= until)
    return holds, {"outlier_dimensions_by_step": counts}, (
        f"{counts[first]} outlier dimensions at step {first}, {counts[last]} at step {last}")

  return in_every_run("outlier_dimensions", names, read)


def ablation_hurts(names: Sequence[str], least: float, factor: float) -> Judge:
  """Judges that surprisal rises by `least` nats without outlier dimensions, and `factor` times as
  much as without random ones."""
  def read(analysis: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str] | None:
    last = analysis["steps"][-1]
    if last["without_outlier_dimensions"] is None or last["without_random"] is None:
      return None
    rise, by_chance = (last[mode]["surprisal"] - last["full"]["surprisal"]
                       for mode in ("without_outlier_dimensions", "without_random"))
    accuracy = {mode: last[mode]["accuracy"] for mode in (
        "full", "without_outlier_dimensions", "without_random")}
    return (rise >= least and rise >= factor * abs(by_chance),
            {"dimensions": len(last["outlier_dimensions"]), "surprisal_rise": rise,
             "surprisal_rise_random": by_chance, "accuracy": accuracy},
            f"surprisal rises by {rise:.3f} nats without {len(last['outlier_dimensions'])} outlier "
            f"dimensions and by {by_chance:.3f} without as many random ones")

  return in_every_run("outlier_dimensions", names, read, "no outlier dimension at the end")


def alone_they_predict_few(names: Sequence[str], share: float) -> Judge:
  """Judges that outlier dimensions alone predict at most `share` of the distinct tokens that all
  dimensions predict, and no rarer ones."""
  def read(analysis: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str] | None:
    last = analysis["steps"][-1]
    alone, full = last["only_outlier_dimensions"], last["full"]
    if alone is None:
      return None
    distinct = [alone["distinct_predictions"], full["distinct_predictions"]]
    common = [alone["mean_corpus_share_of_predicted"], full["mean_corpus_share_of_predicted"]]
    return (distinct[0] <= share * distinct[1] and common[0] >= common[1],
            {"distinct_predictions_alone_and_full": distinct,
             "mean_corpus_share_alone_and_full": common},
            f"alone they predict {distinct[0]} distinct tokens of mean corpus share "
            f"{common[0]:.2%}, all dimensions {distinct[1]} of {common[1]:.2%}")

  return in_every_run("outlier_dimensions", names, read, "no outlier dimension at the end")


def boosted(names: Sequence[str], writes: Sequence[str]) -> Judge:
  """Judges that the median outlier dimension gets more of each of `writes` than the median one."""
  def read(analysis: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str] | None:
    last = analysis["steps"][-1]
    ratios = {name: (last["boost"].get(name) or {}).get("ratios") for name in writes}
    if not last["outlier_dimensions"] or not all(ratios.values()):
      return None
    medians = {name: statistics.median(values) for name, values in ratios.items() if values}
    return (all(value > 1 for value in medians.values()), {"median_ratio": medians},
            ", ".join(f"{name.replace('_', ' ')} {value:.2f} times the usual"
                      for name, value in medians.items()))

  return in_every_run("outlier_dimensions", names, read, "no outlier dimension at the end")


def first_layer_uses_less(names: Sequence[str], share: float) -> Judge:
  """Judges that at the end the first layer uses at most `share` as many units as the last."""
  def read(analysis: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str]:
    used = [row["active_fraction_batch"] for row in analysis["steps"][-1]["layers"]]
    return (used[0] <= share * used[-1], {"active_fraction_batch_by_layer": used},
            f"{used[0]:.1%} of units in layer 0 and {used[-1]:.1%} in layer {len(used) - 1}, in "
            f"{analysis['batch_tokens']:,} tokens")

  return in_every_run("sparsity", names, read)


def token_use_falls(names: Sequence[str]) -> Judge:
  """Judges that the share of units active for a token, mean over layers, is lower at the end."""
  def read(analysis: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str]:
    means = {entry["step"]: statistics.fmean(row["active_fraction_token"]
                                             for row in entry["layers"])
             for entry in analysis["steps"]}
    first, last = means[min(means)], means[max(means)]
    return (last < first, {"active_fraction_token_by_step": means},
            f"from {first:.1%} to {last:.1%} of units for a token")

  return in_every_run("sparsity", names, read)


def units_die(names: Sequence[str], least: float) -> Judge:
  """Judges that in some layer the share of dead units grows by `least`."""
  def read(analysis: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str]:
    first, last = ([row["dead_fraction"] for row in analysis["steps"][i]["layers"]]
                   for i in (0, -1))
    grown = [b - a for a, b in zip(first, last)]
    revived = max(row["revived"] for entry in analysis["steps"] for row in entry["layers"])
    return (max(grown) >= least,
            {"dead_at_first_by_layer": first, "dead_at_the_end_by_layer": last,
             "largest_share_of_dead_revived_between_checkpoints": revived},
            f"dead units from {span(first, '.1%')} to {span(last, '.1%')}, by layer")

  return in_every_run("sparsity", names, read)


def prunable(names: Sequence[str], least: float, most: float) -> Judge:
  """Judges that at least the share `least` of units is rarely active and costs `most` nats or less.
  """
  def read(analysis: Mapping[str, Any]) -> tuple[bool, dict[str, Any], str] | None:
    pruned = analysis.get("pruning")
    if not pruned or not math.isfinite(pruned["loss_change"]):
      return None
    return (pruned["share"] >= least and pruned["loss_change"] <= most, dict(pruned),
            f"{pruned['share']:.1%} of units pruned, loss {pruned['loss_change']:+.4f} nats")

  return in_every_run("sparsity", names, read, "nothing was pruned")
