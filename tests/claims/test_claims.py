"""Rules: a verdict flips when, and only when, the number that decides it does."""

import json

import numpy as np
import pytest

from of_jax.analysis.runs import load_run
from of_jax.claims import growth, rules, study_record
from tests.analysis.synthetic import config, write_run

PRE = {"fast": ["pf0", "pf1", "pf2"], "slow": ["ps0", "ps1", "ps2"]}
OP = {"fast": ["of0", "of1", "of2"], "slow": ["os0", "os1", "os2"]}
# name -> (peak kurtosis, final loss), three seeds each.
NUMBERS = {"pf0": (20.4, 4.46), "pf1": (18.8, 4.48), "pf2": (19.6, 4.47),
           "ps0": (1.5, 4.58), "ps1": (1.6, 4.60), "ps2": (1.55, 4.59),
           "of0": (1.1, 4.30), "of1": (1.2, 4.28), "of2": (1.15, 4.29),
           "os0": (1.1, 4.53), "os1": (1.12, 4.45), "os2": (1.11, 4.49)}


@pytest.fixture
def make(tmp_path):
  """Writes runs of `NUMBERS`, some changed or left out, and loads them."""
  made = []

  def build(change=None, leave_out=(), **options):
    made.append(1)
    numbers = {**NUMBERS, **(change or {})}
    runs = {}
    for name, (kurtosis, loss) in numbers.items():
      if name not in leave_out:
        path = tmp_path / str(len(made)) / name
        write_run(path, config([("train.steps", "20"), ("train.seed", name[-1])]),
                  kurtosis=kurtosis, loss=loss, **options.get(name, {}))
        runs[name] = load_run(path)
    return runs

  return build


JUDGE = rules.outliers_at_best(PRE, OP, 5)


def test_reproduced_with_its_numbers(make):
  verdict = JUDGE(make())
  assert verdict.verdict == "reproduced"
  evidence = verdict.evidence
  assert evidence["kurtosis_ratio"] == pytest.approx(19.6 / 1.15)
  assert evidence["loss_tolerance"] == rules.NO_WORSE == 0.05
  assert evidence["loss_op_minus_pre"] == pytest.approx(4.29 - 4.47)
  kurtosis, loss = evidence["parts"]
  logs = np.log([20.4 / 1.1, 18.8 / 1.2, 19.6 / 1.15])
  half = 4.302653 * logs.std(ddof=1) / 3 ** 0.5   # Student's t, 2 degrees, 2.5 % above
  assert kurtosis["paired"] and kurtosis["seeds"] == [3] and kurtosis["method"] == "Student's t"
  assert kurtosis["estimate"] == pytest.approx(logs.mean())
  assert kurtosis["interval"][1] == pytest.approx(logs.mean() + half)
  assert kurtosis["interval"][0] == pytest.approx(logs.mean() - half * 2.919986 / 4.302653)
  assert kurtosis["margin"] == pytest.approx(np.log(5)) and loss["margin"] == -0.05
  assert evidence["pre"]["best_setting"] == evidence["op"]["best_setting"] == "fast"
  assert "18.8 to 20.4" in verdict.summary and "4.290 against 4.470" in verdict.summary


@pytest.mark.parametrize("change, expected", [
    ({f"pf{i}": (x, 4.47) for i, x in enumerate((6.9, 7.4, 7.1))}, "reproduced"),
    ({f"pf{i}": (x, 4.47) for i, x in enumerate((5.9, 5.8, 5.9))}, "inconclusive"),  # near 5 times
    ({f"pf{i}": (x, 4.47) for i, x in enumerate((3.9, 4.3, 4.1))}, "not reproduced"),
    ({"of1": (6.8, 4.28)}, "inconclusive"),            # one op seed can break it
    ({f"of{i}": (1.1 + i / 50, x) for i, x in enumerate((4.47, 4.49, 4.47))}, "reproduced"),
    ({f"o{r}{i}": (1.1 + i / 50, 4.53 + x) for r in "fs" for i, x in enumerate((0, .05, 0))},
     "inconclusive"),                                   # worse by 0.05 or so, which is allowed
    ({f"o{r}{i}": (1.1 + i / 50, 4.7 + x) for r in "fs" for i, x in enumerate((0, .03, .02))},
     "not reproduced"),
    ({f"ps{i}": (1.5 + i / 50, 4.40 + i / 50) for i in range(3)}, "not reproduced"),
])
def test_the_verdict_turns_on_the_deciding_number(make, change, expected):
  assert JUDGE(make(change)).verdict == expected


def test_the_best_rate_is_chosen_again_without_each_seed(make):
  """Rates whose losses are alike, and whose kurtosis is not, leave the claim open."""
  change = {f"ps{i}": (1.5, x) for i, x in enumerate((4.49, 4.47, 4.46))}
  part = JUDGE(make(change)).evidence["parts"][0]
  assert part["verdict"] == "inconclusive"
  sure, = (JUDGE(make()).evidence["parts"][:1])
  width = [np.diff(one["interval"])[0] for one in (part, sure)]
  assert width[0] > 5 * width[1]


def test_one_seed_is_open_and_says_how_many_would_decide(make):
  judge = rules.outliers_at_best({"fast": ["pf0"]}, {"fast": ["of0"]}, 5)
  verdict = judge(make())
  assert verdict.verdict == "inconclusive" and "open with one seed" in verdict.summary
  assert [part["seeds_to_decide"] for part in verdict.evidence["parts"]] == [2, 2]
  assert verdict.evidence["parts"][0]["interval"] == [None, None]
  near = rules.larger_peaks([("pf0", "of0")], 20.4 / 1.1, "a", "b")(make())
  assert near.evidence["parts"][0]["seeds_to_decide"] is None
  assert "no number up to 100 would decide" in near.summary


def test_seeds_that_agree_to_the_last_digit_decide_nothing(make):
  runs = make({name: (2.0 if name[0] == "p" else 1.0, 4.4) for name in NUMBERS})
  verdict = rules.larger_peaks(list(zip(PRE["fast"], OP["fast"])), 1.5, "a", "b")(runs)
  assert verdict.verdict == "inconclusive" and "without any spread" in verdict.summary


@pytest.mark.parametrize("options, why", [
    ({"leave_out": ["os1"]}, "missing"),
    ({"os1": {"nan_from": 10}}, "diverged"),
    ({"os1": {"nan_from": 10, "finished": False}}, "not finished"),
    ({"os1": {"steps": 10, "finished": False}}, "not finished (step 10 of 20)"),
    ({"os1": {"corpus_sha256": "0ther"}}, "read another corpus than the first run"),
])
def test_a_run_that_cannot_be_judged_leaves_it_open(make, options, why):
  verdict = JUDGE(make(**options))
  assert verdict.verdict == "inconclusive"
  assert list(verdict.evidence["runs"]) == ["os1"]
  assert why in verdict.evidence["runs"]["os1"]


def test_no_runs_at_all():
  verdict = JUDGE({})
  assert verdict.verdict == "inconclusive" and verdict.evidence["reason"] == "runs missing"


def test_a_run_without_telemetry_leaves_it_open(make, tmp_path):
  runs = make()
  metrics = runs["pf0"].path / "metrics.jsonl"
  metrics.write_text(metrics.read_text().replace('"kurtosis"', '"kurtosiz"'))
  runs["pf0"] = load_run(runs["pf0"].path)
  assert JUDGE(runs).evidence["runs"] == {"pf0": "no kurtosis was measured"}


@pytest.mark.parametrize("large, expected", [
    (1.2, "reproduced"), (1.9, "reproduced"), (2.0, "inconclusive"), (3, "not reproduced")])
def test_embedding_scale(make, large, expected):
  judge = rules.outliers_need_small_scale(PRE["fast"], PRE["slow"], factor=5, ceiling=2,
                                          also={"of0": "op at scale 8", "gone": "a run"})
  verdict = judge(make({f"ps{i}": (large * (1 + i / 200), 4.4) for i in range(3)}))
  assert verdict.verdict == expected
  assert ("nothing forms" in verdict.summary) == (large < 1.95)
  assert set(verdict.evidence["peak_kurtosis"]) == {*PRE["fast"], *PRE["slow"], "of0"}
  told = verdict.summary.partition("; not part of this claim: ")[2]
  assert told.startswith("op at scale 8 has loss ") and "a run" not in told


def test_embedding_scale_needs_the_factor_too(make):
  judge = rules.outliers_need_small_scale(PRE["fast"], PRE["slow"], factor=5, ceiling=2)
  assert judge(make({f"pf{i}": (4 + i / 9, 4.4) for i in range(3)})).verdict == "not reproduced"


SLOW = list(zip(PRE["slow"], PRE["fast"]))


def test_smaller_peaks_must_hold_in_every_part(make):
  judge = rules.smaller_peaks(SLOW, "the smaller rate")
  assert judge(make()).verdict == "reproduced"
  verdict = judge(make({"ps1": (18.9, 4.6)}))
  assert verdict.verdict == "inconclusive" and verdict.evidence["pairs_that_hold"] == 2
  # Another comparison is a part of its own, and one that fails contradicts.
  pairs = [*SLOW, *((a, b) for a, b in zip(PRE["fast"], OP["fast"]))]
  assert rules.smaller_peaks(pairs, "both")(make(
      {}, **{f"o{r}{i}": {"corpus_sha256": "c0ffee" * 10} for r in "fs" for i in range(3)})
  ).evidence["parts"][0]["seeds"] == [6]


def test_parts_differ_in_more_than_the_seed(make, tmp_path):
  runs = make()
  for name in [*OP["fast"]]:
    path = tmp_path / "op" / name
    write_run(path, config([("train.steps", "20"), ("model.block", "op"), ("model.beta", "0.3"),
                            ("train.seed", name[-1])]), kurtosis=NUMBERS[name][0])
    runs[name] = load_run(path)
  verdict = rules.smaller_peaks([*SLOW, *zip(PRE["fast"], OP["fast"])], "both")(runs)
  first, second = verdict.evidence["parts"]
  assert verdict.verdict == second["verdict"] == "not reproduced"
  assert first["verdict"] == "reproduced" and first["seeds"] == second["seeds"] == [3]
  assert first["tails"] == [0.05, 0.025]


def test_smaller_peaks_by_a_factor_of_another_metric(make):
  def verdict(factor):
    judge = rules.smaller_peaks(SLOW, "slow", metric="mmr", factor=factor)
    return judge(make(**{f"ps{i}": {"mmr": 4 + i / 50} for i in range(3)},
                      **{f"pf{i}": {"mmr": 12.1 + i / 50} for i in range(3)}))

  assert verdict(2.9).verdict == "reproduced" and verdict(3.1).verdict == "not reproduced"
  assert verdict(2.9).evidence["peak_mmr"]["ps0"] == 4.0
  assert "the smaller peak mmr by a factor of 2.9 in 3 of 3 pairs" in verdict(2.9).summary


def test_other_seeds_on_one_side_are_not_paired(make):
  runs = make()
  pairs = [("ps0", "pf1"), ("ps1", "pf2"), ("ps2", "pf0")]
  part, = rules.smaller_peaks(pairs, "slow")(runs).evidence["parts"]
  assert not part["paired"] and part["seeds"] == [3, 3]


def test_growth_is_of_kurtosis_less_one(make):
  runs = make({"pf0": (101.0, 4.4)})
  first = float(runs["pf0"].measured("kurtosis").values[0].max())
  ratio = 100 / (first - 1)
  found = growth.growth(["pf0"], ratio)(runs)
  assert found.evidence["growth"] == {"pf0": pytest.approx(ratio)}
  three = make({f"pf{i}": (101.0 + i, 4.4) for i in range(3)})
  # These grow by one factor to the last digit.
  assert "without any spread" in growth.growth(PRE["fast"], ratio * 0.9)(three).summary


def test_one_exponent_exceeds_the_other(make):
  peaks = {**{f"pf{i}": (20.0 + i / 2, 4.4) for i in range(3)},
           **{f"ps{i}": (10.0 + i / 9, 4.4) for i in range(3)},
           **{f"of{i}": (2.0 + i / 99, 4.4) for i in range(3)},
           **{f"os{i}": (2.0 + i / 98, 4.4) for i in range(3)}}
  runs = make(peaks)

  def verdict(margin):
    return growth.grows_faster({16: PRE["slow"], 32: PRE["fast"]},
                               {16: OP["slow"], 32: OP["fast"]}, margin, "pre", "op")(runs)

  assert verdict(0.9).evidence["exponents"]["pre"][0] == pytest.approx(1)
  assert verdict(0.9).verdict == "reproduced" and verdict(1.2).verdict == "not reproduced"


def test_a_reworded_rule_keeps_the_first_one():
  claim = rules.Claim("a", "s", "p", "new rule", JUDGE)
  entry, = study_record.judge([claim], {}, {"claims": [{"id": "a", "rule": "old rule"}]})
  assert (entry["rule"], entry["rule_at_start"]) == ("new rule", "old rule")
  again, = study_record.judge([claim], {}, {"claims": [entry]})
  assert again["rule_at_start"] == "old rule"
  same, = study_record.judge([claim], {}, {"claims": [{"id": "a", "rule": "new rule"}]})
  assert "rule_at_start" not in same


@pytest.mark.parametrize("judge", [
    rules.outliers_at_best({}, OP, 5), rules.outliers_at_best(PRE, {}, 5),
    rules.outliers_at_best({"fast": []}, OP, 5), rules.smaller_peaks([], "nothing"),
    rules.larger_peaks([], 2, "nothing", "none"), growth.falls([], "nothing"),
    growth.growth([], 10)], ids=lambda judge: ",".join(judge.groups))
def test_a_rule_that_names_no_run_is_inconclusive(make, judge):
  for runs in ({}, make()):
    verdict = judge(runs)
    assert verdict.verdict == "inconclusive" and "names no run" in verdict.summary


@pytest.mark.parametrize("judge", [
    JUDGE, rules.outliers_need_small_scale("pf0", "ps0", factor=5, ceiling=2),
    rules.smaller_peaks([("ps0", "pf0")], "slow"),
    rules.larger_peaks([("pf0", "ps0")], 2, "a", "b"),
    growth.falls(["pf0"], "pf"), growth.growth(["pf0"], 1)])
def test_a_run_of_one_logged_step_or_none_at_its_end_is_inconclusive(tmp_path, judge):
  for steps, total, why in ((1, "1", "too short"), (5, "20", "evaluated last at step 5 of 20")):
    runs = {}
    for name, (kurtosis, loss) in NUMBERS.items():
      path = tmp_path / total / name
      write_run(path, config([("train.steps", total), ("train.eval_every", "5")]),
                kurtosis=kurtosis, loss=loss, steps=steps)
      runs[name] = load_run(path)
    verdict = judge(runs)
    assert verdict.verdict == "inconclusive" and why in verdict.summary


def test_a_number_that_is_undefined_decides_nothing(make):
  judge = rules.smaller_peaks([("ps0", "pf0")], "slow", metric="max_abs_of_nothing")
  assert judge(make()).verdict == "inconclusive"
  assert "undefined" in judge(make()).summary


def test_runs_left_out_are_told_and_do_not_decide(make):
  also = {"os0": "op, slowly", "gone": "a run that is missing"}
  judge = rules.outliers_at_best(PRE, {"fast": OP["fast"]}, 5, also=also)
  runs = make()
  assert "not part of this claim: op, slowly has loss 4.530 and kurtosis 1.1" in judge(runs).summary
  assert judge(runs).verdict == "reproduced"
  pairs = rules.smaller_peaks(SLOW, "slow", also={"op": [("of0", "os0")]})
  assert "not part of this claim: op 1.1 against 1.1" in pairs(runs).summary
  claim = rules.Claim("a", "s", "p", "rule", pairs)
  entry, = study_record.judge([claim], runs)
  assert {one["run"] for one in entry["left_out"]} == {*OP["fast"], *OP["slow"]}
  assert entry["left_out"][0] == {"run": "of0", "final_loss": 4.3,
                                  "peak_kurtosis": pytest.approx(1.1)}


def test_other_settings_than_declared_are_not_judged(make):
  claim = rules.Claim("a", "s", "p", "rule", rules.smaller_peaks(SLOW, "slow"))
  runs = make()

  def verdict(*fields):
    declared = {name: config([("train.steps", "20"), ("train.seed", name[-1]), *fields])
                for name in runs}
    return study_record.judge([claim], runs, declared=declared)[0]

  assert verdict()["verdict"] == "reproduced"
  assert verdict(("telemetry.every", "7"), ("mesh.data", "1"))["verdict"] == "reproduced"
  for field, value in (("train.steps", "150"), ("data.corpus", "text:mine.txt")):
    found = verdict((field, value))
    assert found["verdict"] == "inconclusive"
    assert f"not the declared setting: {field}=" in found["summary"]


def test_margins_are_hashed_before_the_runs_and_do_not_move_after(make):
  runs = make()
  declared = {name: run.config for name, run in runs.items()}

  def entry(factor, previous=None, found=runs):
    claim = rules.Claim("a", "s", "p", "rule", rules.smaller_peaks(SLOW, "slow", factor=factor))
    return study_record.judge([claim], found, previous, declared)[0]

  first = entry(2, found={})
  assert first["margins"][0]["margin"] == pytest.approx(np.log(2)) and first["margins_sha256"]
  assert entry(2, {"claims": [first]})["verdict"] == "reproduced"
  moved = entry(3, {"claims": [first]})
  assert moved["verdict"] == "inconclusive" and "not those that were written" in moved["summary"]
  assert moved["margins_sha256_at_start"] == first["margins_sha256"]
  again = entry(3, {"claims": [moved]})
  assert again["verdict"] == "inconclusive"
  assert entry(2, {"claims": [again]})["verdict"] == "reproduced"
  # A record of before there were hashes is judged.
  assert entry(3, {"claims": [{"id": "a", "rule": "rule"}]})["verdict"] == "reproduced"


def test_what_grows_from_nothing_has_no_factor(make):
  runs = make()
  metrics = runs["pf0"].path / "metrics.jsonl"
  first, *rest = metrics.read_text().splitlines(keepends=True)
  line = json.loads(first)
  line["telemetry"]["resid_pre"]["kurtosis"] = [1.0] * 6
  metrics.write_text(json.dumps(line) + "\n" + "".join(rest))
  assert growth.growth(["pf0"], 10)({"pf0": load_run(metrics.parent)}).verdict == "inconclusive"
