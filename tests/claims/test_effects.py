"""Intervals of effects against SciPy, what they decide, and how often that is wrong."""

import math

import numpy as np
import pytest
import scipy.stats

from of_jax.claims import effects, simulate
from of_jax.claims.effects import Test as Part

X, Y = np.array([1.0, 1.4, 1.1, 1.3]), np.array([0.2, 0.3, 0.5, 0.1])


def part(margin=0.0, effect="difference", seeds=3, choices=1, spread=0.1):
  return Part("a", effect, margin, spread, seeds, choices)


def test_up_to_five_seeds_it_is_students_t():
  own = effects.paired(part(), X, Y, True)
  found = effects.interval(own.statistic, own.counts)
  wanted = scipy.stats.ttest_rel(X, Y).confidence_interval(0.9)
  assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
  one_sided = effects.interval(own.statistic, own.counts, 0.05, 0.025)
  assert one_sided.low == found.low and one_sided.high == pytest.approx(
      scipy.stats.ttest_rel(X, Y).confidence_interval(0.95).high)


def test_what_shares_no_seed_is_welchs():
  own = effects.paired(part(), X, Y[:3], False)
  found = effects.interval(own.statistic, own.counts)
  wanted = scipy.stats.ttest_ind(X, Y[:3], equal_var=False).confidence_interval(0.9)
  assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_from_six_on_it_is_a_bootstrap_as_wide_as_students_t():
  values = np.random.default_rng(3).normal(size=20)
  own = effects.mean(part(), values)
  found = effects.interval(own.statistic, own.counts)
  wanted = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
  assert found.method == "bootstrap"
  assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.08)
  skewed = effects.mean(part(), np.exp(2 * values))
  found = effects.interval(skewed.statistic, skewed.counts)
  assert found.high - found.estimate > 1.1 * (found.estimate - found.low)


def test_a_share_is_exact():
  for holds in ([True] * 3, [True, True, False], [False] * 2):
    found = effects.of_share(holds)
    wanted = scipy.stats.binomtest(sum(holds), len(holds)).proportion_ci(0.9)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
  # Five of five are more than half, four of four may be chance.
  assert [effects.verdict_of(effects.of_share([True] * n), 0.5) for n in (4, 5)] == [
      "inconclusive", "reproduced"]


@pytest.mark.parametrize("values, margin, expected, needed", [
    ([1.0, 1.1, 1.2], 0.5, "reproduced", None), ([1.0, 1.1, 1.2], 2.0, "not reproduced", None),
    ([1.0, 1.1, 1.2], 1.05, "inconclusive", 13), ([1.0, 1.1, 1.2], 1.1, "inconclusive", None),
    # No worse by 0.05, and worse by more.
    ([-0.01, 0.0, -0.02], -0.05, "reproduced", None),
    ([-0.08, -0.09, -0.1], -0.05, "not reproduced", None), ([1.1], 0.5, "inconclusive", 3),
    ([1.0, 1.0, 1.0], 0.5, "inconclusive", 4)])
def test_verdicts_and_how_many_seeds_would_decide(values, margin, expected, needed):
  verdict = effects.judged([effects.mean(part(margin, spread=0.2), values)], {}, "read")
  assert verdict.verdict == expected
  found = verdict.evidence["parts"][0]["seeds_to_decide"]
  assert found == needed
  if needed and len(values) > 1 and verdict.evidence["parts"][0]["method"] == "Student's t":
    # By hand: half an interval is shorter than the way to the margin, and one seed less is not.
    sd, away = np.std(values, ddof=1), abs(np.mean(values) - margin)
    half = [scipy.stats.t.ppf(0.95, n - 1) * sd / math.sqrt(n) for n in (needed - 1, needed)]
    assert half[1] < away <= half[0]


def test_all_parts_are_needed_and_any_contradicts():
  good, bad, open_ = "reproduced", "not reproduced", "inconclusive"
  assert effects.combined([good, good]) == good and effects.combined([good, open_]) == open_
  assert effects.combined([good, bad]) == effects.combined([open_, bad]) == bad


def test_an_undefined_number_decides_nothing():
  verdict = effects.judged([effects.mean(part(), [1.0, math.nan, 2.0])], {}, "read")
  assert verdict.verdict == "inconclusive" and "undefined" in verdict.summary


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("tests", [
    (part(0.2),), (part(0.2, choices=2), part(-0.05, choices=2, spread=0.03))])
def test_rules_are_wrong_at_their_margin_as_often_as_they_say(seeds, tests):
  found = simulate.of_rule(tests, seeds, 300)
  # 5 % each, and 10 % at most; three standard errors of 300 sets are 4 to 5 %.
  assert found["reproduced"] <= 0.1 and found["contradicted"] <= 0.1
  if len(tests) == 1 and seeds >= 3:
    assert found["power"] > 0.6
