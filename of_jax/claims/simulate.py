"""How often rules are wrong, and how often they see what is there, by simulation.

Enters: claims with the parts of their rules. Leaves: of each the share of false verdicts where the
truth lies at the margin, and of right ones where it lies as far again beyond: at twice the margin,
or, for "no worse", at no difference. Seeds differ by normal noise of the spread that each part
assumes; where the best of several settings is chosen, their losses are alike: noise chooses.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from of_jax.claims import effects, rules
from of_jax.claims.effects import TAIL, Interval, Test
from of_jax.claims.judge import Claim
from of_jax.config import Config

# Seeds for which rules are simulated, beside the number that they read.
SEEDS = (3, 6, 10)


def table(claims: Mapping[str, tuple[Sequence[Claim], Mapping[str, Config]]], count: int,
          log: Callable[[Mapping[str, Any]], None] = lambda row: None) -> list[dict[str, Any]]:
  """Simulates every claim of every study.

  Args:
    claims: study -> its claims and its runs' configs.
    count: sets of made data for each row and place of the truth.
    log: takes each row as it ends.
  """
  rows = []
  for study, (declared, configs) in claims.items():
    for claim in declared:
      tests = tuple(claim.judge.tests(configs))
      if not tests:
        continue
      own = min(test.seeds for test in tests)
      row = {"study": study, "claim": claim.id, "parts": len(tests), "seeds": own,
             "by_seeds": {str(n): of_rule(_nameless(tests), n, count)
                          for n in dict.fromkeys((own, *SEEDS)) if n}}
      rows.append(row)
      log(row)
  return rows


def _nameless(tests: Sequence[Test]) -> tuple[Test, ...]:
  """Leaves out what does not matter, so that rules alike are simulated once."""
  return tuple(dataclasses.replace(test, name="", seeds=test.seeds
                                   if test.effect == "rank correlation" else 0) for test in tests)


@functools.lru_cache(maxsize=256)
def of_rule(tests: tuple[Test, ...], seeds: int, count: int) -> dict[str, float]:
  """Simulates one rule at one number of seeds.

  Returns:
    Shares: `reproduced` and `contradicted` where all parts lie at their margins, and `power`, where
    all lie as far again beyond.
  """
  found = {}
  for place in (0, 1):
    rng = np.random.default_rng([seeds, place])
    verdicts = [effects.combined([_verdict(test, place, seeds, len(tests), rng)
                                  for test in tests]) for _ in range(count)]
    if place:
      found["power"] = verdicts.count("reproduced") / count
    else:
      found["reproduced"] = verdicts.count("reproduced") / count
      found["contradicted"] = verdicts.count("not reproduced") / count
  return found


def _verdict(test: Test, place: int, seeds: int, parts: int, rng: np.random.Generator) -> str:
  truth = test.margin + place * abs(test.margin)
  return effects.verdict_of(_interval(test, truth, seeds, TAIL / parts, rng), test.margin)


def _interval(test: Test, truth: float, seeds: int, upper: float, rng: np.random.Generator
              ) -> Interval:
  """Makes data whose effect is `truth`, and its interval."""
  if test.effect == "share of seeds":
    return effects.of_share((rng.random(seeds) < truth).tolist(), TAIL, upper)
  if test.effect == "rank correlation":
    from of_jax.claims.quantisation import spearman

    # Pearson's of normal numbers whose Spearman's is `truth`.
    rho = 2 * math.sin(math.pi * truth / 6)
    x, y = rng.standard_normal((2, test.seeds))
    y = rho * x + math.sqrt(1 - rho ** 2) * y
    return effects.interval(lambda i: spearman(x[i], y[i]), (test.seeds,), TAIL, upper)
  # The spread is that of a seed's effect, of which each side has half the variance.
  sides = rng.normal(0, test.spread / math.sqrt(2), (2, test.choices, seeds))
  sides[0] += truth
  losses = rng.standard_normal((2, test.choices, seeds))
  first, second = (rules.best(losses[i], sides[i]) for i in (0, 1))
  return effects.interval(rules.best_of_two(first, second, True), (seeds,), TAIL, upper)


def false_verdicts(rows: Sequence[Mapping[str, Any]], seeds: int | None = None) -> float:
  """Adds up the false verdicts to expect if the truth lay at every claim's margin; `seeds` in
  place of those that each reads."""
  return float(sum(one["reproduced"] + one["contradicted"] for row in rows
                   for one in [row["by_seeds"].get(str(seeds or row["seeds"]))] if one))


def as_table(row: Mapping[str, Any]) -> str:
  """Writes a row of docs/claims_power.md."""
  cells = []
  for n in (row["seeds"], *SEEDS):
    one = row["by_seeds"].get(str(n))
    cells.append("" if one is None else f"{100 * one['reproduced']:.0f} / "
                 f"{100 * one['contradicted']:.0f} / {100 * one['power']:.0f}")
  return f"| {row['study']} | {row['claim']} | {row['parts']} | {row['seeds']} | " + (
      " | ".join(cells) + " |")


HEAD = ("| study | claim | parts | seeds | at its seeds | "
        + " | ".join(f"at {n}" for n in SEEDS) + " |\n|" + "---|" * (5 + len(SEEDS)))
