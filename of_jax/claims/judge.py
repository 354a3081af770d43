"""Claims, judges and verdicts. Enters: runs by name. Leaves: a verdict with its evidence.

A claim is declared with its rule before the runs exist. What every rule needs stands here: a claim
can be neither won nor lost by runs that are missing, unfinished, not finite or too short, nor by a
number that is undefined.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from of_jax.analysis.runs import Run
from of_jax.config import Config

Runs = Mapping[str, Run]

# A curve of one point has no first and last, and no peak that is more than its beginning.
_LEAST_POINTS = 2


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A rule's answer: `evidence` holds the numbers it read, `summary` one plain sentence."""

  verdict: Literal["reproduced", "not reproduced", "inconclusive"]
  evidence: Mapping[str, Any]
  summary: str


@dataclasses.dataclass(frozen=True)
class Judge:
  """A rule as a function of a study's runs.

  Attributes:
    groups: what a group of runs is -> their names, as in {"pre at learning rate 1e-2": [...]}.
      Where a group names no run, or one that cannot be judged, the verdict is inconclusive.
    decide: the rule itself, asked only where every run of every group can be judged.
    tests: the configs of the runs by name -> the parts of the rule with their margins, which are
      of_jax.claims.effects.Test; they are hashed before the runs.
  """

  groups: Mapping[str, Sequence[str]]
  decide: Callable[[Runs], Verdict]
  tests: Callable[[Mapping[str, Config]], Sequence[Any]] = lambda configs: ()

  @property
  def names(self) -> list[str]:
    """The names of the runs that decide, each once, in the order of the groups."""
    return list(dict.fromkeys(name for names in self.groups.values() for name in names))

  def __call__(self, runs: Runs) -> Verdict:
    empty = [label for label, names in self.groups.items() if not names]
    if empty or not self.groups:
      return Verdict("inconclusive", {"reason": "no runs named", "runs": {}, "groups": empty},
                     f"the rule names no run{' of ' + ', '.join(empty) if empty else ''}")
    found = problems(runs, self.names)
    return unjudged(found) if found else self.decide(runs)


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement that runs can support or contradict.

  Attributes:
    id: short name, unique in its study.
    statement: what is claimed, with what was varied and what was held.
    paper: what the paper reports, with its numbers and conditions.
    rule: exactly which numbers decide, in words.
    judge: the rule as a function of the study's runs by name.
  """

  id: str
  statement: str
  paper: str
  rule: str
  judge: Judge


def problems(runs: Runs, names: Sequence[str]) -> dict[str, str]:
  """Finds why runs cannot be judged, by name; empty if all can."""
  found = {name: why for name in names if (why := _problem(runs.get(name))) is not None}
  # Losses on different tokens do not compare; a folder of text may change between two runs.
  data = {n: tuple(runs[n].env.get(k) for k in ("corpus_sha256", "tokenizer_sha256"))
          for n in names if n in runs}
  for name in data:
    if data[name] != data[next(iter(data))] and name not in found:
      found[name] = "read another corpus than the first run"
  return found


def _problem(run: Run | None) -> str | None:
  """Says why one run cannot be judged; None if it can."""
  if run is None:
    return "missing"
  steps = run.config.train.steps
  if not run.finished:
    return f"not finished (step {run.steps_done} of {steps})"
  if run.diverged:
    return "diverged: a loss or a kurtosis is not finite"
  if not run.eval.loss.size:
    return "was never evaluated"
  if run.eval.steps[-1] != steps:
    return f"was evaluated last at step {run.eval.steps[-1]} of {steps}"
  points = len(run.measured("kurtosis").steps)
  if not points:
    return "no kurtosis was measured"
  if points < _LEAST_POINTS:
    return "too short: kurtosis was measured at one step alone"
  return None


def undefined(evidence: Mapping[str, Any], summary: str) -> Verdict:
  """Makes the verdict where a number that decides is undefined."""
  return Verdict("inconclusive", {"reason": "a number that decides is undefined", **evidence},
                 f"a number that decides is undefined: {summary}")


def unjudged(found: Mapping[str, str]) -> Verdict:
  """Makes the verdict `inconclusive`, which names the runs at fault."""
  reason = "runs missing" if set(found.values()) == {"missing"} else "runs cannot be judged"
  by_why: dict[str, list[str]] = {}
  for name, why in found.items():
    by_why.setdefault(why, []).append(name)
  parts = [f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}: {why}"
           for why, names in by_why.items()]
  return Verdict("inconclusive", {"reason": reason, "runs": dict(found)}, "; ".join(parts))


def span(values: Sequence[float], form: str = ".3g") -> str:
  """Writes the smallest and the largest value, as one number where they print alike."""
  low, high = format(min(values), form), format(max(values), form)
  return low if low == high else f"{low} to {high}"
