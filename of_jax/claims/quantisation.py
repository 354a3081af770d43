"""Rules on the cost of quantisation. Enters: runs with quantised.json. Leaves: judges, as
of_jax.claims.rules makes them of curves.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from of_jax.analysis.runs import read_analysis
from of_jax.claims.effects import RESAMPLES, Effect, Test, judged
from of_jax.claims.judge import Judge, Runs, Verdict, span, unjudged
from of_jax.claims.rules import effect_at_best

ANALYSIS = "quantised"
# Spearman's correlation that runs must exceed, and nats by which less is less.
CORRELATES, LESS = 0.25, 0.001
# As of_jax.quantise.scheme has them; an analysis without a preset is an older one, of OF_JAX.
OF_JAX, BONDARENKO = "of_jax", "bondarenko"
# Of n runs the ranks agree by chance with probability 1 / n!, which is above 2.5 % for fewer.
LEAST_RUNS = 5

Floats = npt.NDArray[np.float64]


def spearman(a: Floats, b: Floats) -> Floats:
  """Computes Spearman's correlation along the last axis, [..., n] -> [...]; NaN of a constant.

  Pearson's correlation of the ranks, equal values sharing the mean of theirs. Many pairs are
  correlated at once, which `scipy.stats.spearmanr` cannot.
  """
  # Here, since it is slow to import and a study's other claims do without.
  from scipy.stats import rankdata
  x, y = (2 * rankdata(values, axis=-1) - values.shape[-1] - 1 for values in (a, b))
  scale = np.sqrt(np.sum(x * x, -1) * np.sum(y * y, -1))
  found: Floats = np.divide(np.sum(x * y, -1), scale, where=scale > 0,
                            out=np.full(scale.shape, np.nan))
  return found


def _judge(groups: Mapping[str, Sequence[str]], scheme: str, preset: str,
           decide: Callable[[Runs, dict[str, Mapping[str, Any]]], Verdict], tests: Sequence[Test]
           ) -> Judge:
  """Makes a judge of what each run's last checkpoint lost under a scheme of a preset, by name."""
  def decide_if_quantised(runs: Runs) -> Verdict:
    last: dict[str, Mapping[str, Any]] = {}
    found: dict[str, str] = {}
    for name in judge.names:
      value = read_analysis(runs[name], ANALYSIS)
      end = runs[name].config.train.steps
      if value is None:
        found[name] = f"has no {ANALYSIS}.json"
      elif not value["steps"] or value["steps"][-1]["step"] != end:
        found[name] = f"{ANALYSIS}.json does not reach to step {end}"
      elif scheme not in (schemes := value["steps"][-1]["schemes"]):
        found[name] = f"{ANALYSIS}.json has no {scheme}"
      elif (theirs := schemes[scheme].get("preset", OF_JAX)) != preset:
        found[name] = f"{ANALYSIS}.json is of the preset {theirs}, not {preset}: analyse it again"
      elif value["steps"][-1]["kurtosis"] is None or schemes[scheme]["increase"]["mean"] is None:
        found[name] = f"{ANALYSIS}.json has no number for {scheme}: a loss is not finite"
      else:
        last[name] = value["steps"][-1]
    return unjudged(found) if found else decide(runs, last)

  judge = Judge(groups, decide_if_quantised, lambda configs: tests)
  return judge


def correlates(names: Sequence[str], scheme: str, preset: str = BONDARENKO,
               margin: float = CORRELATES) -> Judge:
  """Judges that kurtosis and the increase of log-perplexity rank the runs alike.

  Kurtosis is the mean over layers of the stream entering each block, at the last checkpoint. The
  interval of Spearman's correlation over runs must lie above `margin`.
  """
  names = list(dict.fromkeys(names))
  test = Test(f"correlation under {scheme}", "rank correlation", margin, 0.5, len(names))

  def decide(runs: Runs, last: Mapping[str, Mapping[str, Any]]) -> Verdict:
    if len(names) < LEAST_RUNS:
      return Verdict("inconclusive", {"reason": "too few runs", "runs": {}},
                     f"{len(names)} runs; a correlation needs at least {LEAST_RUNS}")
    kurtosis = np.asarray([last[name]["kurtosis"] for name in names], np.float64)
    increase = np.asarray([last[name]["schemes"][scheme]["increase"]["mean"] for name in names],
                          np.float64)
    correlation = float(spearman(kurtosis, increase))
    return judged(
        [Effect(test, lambda i: spearman(kurtosis[i], increase[i]), (len(names),), {})],
        {"kurtosis": dict(zip(names, kurtosis.tolist())),
         "increase_of_log_perplexity": dict(zip(names, increase.tolist())),
         "spearman": correlation, "resamples": RESAMPLES},
        f"over {len(names)} runs Spearman's correlation of kurtosis with the increase of "
        f"log-perplexity under {scheme} is {correlation:.2f}")

  return _judge({"ranked": names}, scheme, preset, decide, (test,))


def loses_less(op: Mapping[str, Sequence[str]], pre: Mapping[str, Sequence[str]], scheme: str,
               preset: str = BONDARENKO, margin: float = LESS) -> Judge:
  """Judges that `op` loses less than `pre` by `margin` nats, each at its best setting.

  Args:
    op, pre: setting -> the names of its runs, one a seed. The best one has the lowest mean of the
      final validation losses, and is chosen again for each set of seeds.
    margin: nats a token.
  """
  seeds = min(map(len, [*op.values(), *pre.values()]), default=0)
  test = Test(f"nats that pre loses under {scheme} less those of op", "difference", margin,
              4 * margin, seeds, max(len(op), len(pre)))

  def decide(runs: Runs, last: Mapping[str, Mapping[str, Any]]) -> Verdict:
    def best(table: Mapping[str, Sequence[str]]) -> dict[str, Any]:
      means = {setting: statistics.fmean(runs[name].final_loss for name in seeds)
               for setting, seeds in table.items()}
      setting = min(means, key=lambda s: means[s])
      return {"best_setting": setting, "mean_loss_by_setting": means,
              "kurtosis": [last[name]["kurtosis"] for name in table[setting]],
              "increase_of_log_perplexity": [
                  last[name]["schemes"][scheme]["increase"]["mean"] for name in table[setting]]}

    ours, theirs = best(op), best(pre)
    lost, lost_theirs = (side["increase_of_log_perplexity"] for side in (ours, theirs))
    found = effect_at_best(runs, pre, op, test, lambda run: last[run.name]["schemes"][scheme][
        "increase"]["mean"])
    return judged(
        [found], {"op": ours, "pre": theirs},
        f"under {scheme}, each at its best setting, op loses {span(lost)} nats "
        f"({ours['best_setting']}) and pre {span(lost_theirs)} ({theirs['best_setting']})")

  groups = {f"{what} at {setting}": names for what, table in (("op", op), ("pre", pre))
            for setting, names in (table.items() or [("no setting", ())])}
  return _judge(groups, scheme, preset, decide, (test,))
