"""Rules on checkpoints: decided by what was found, and by nothing where nothing was."""

import json

import pytest

from of_jax.analysis.runs import load_run
from of_jax.claims import checkpoints as rules
from tests.analysis.synthetic import config, write_run

STEPS = 20


def mode(surprisal, distinct=50, share=0.01, accuracy=0.2):
  return {"surprisal": surprisal, "accuracy": accuracy, "distinct_predictions": distinct,
          "mean_corpus_share_of_predicted": share}


def dimensions(step, found=1):
  """An analysed checkpoint of which every claim of the study holds."""
  return {"step": step, "outlier_dimensions": list(range(found)), "full": mode(4.0),
          "without_outlier_dimensions": mode(4.5), "without_random": mode(4.01),
          "only_outlier_dimensions": mode(6.0, distinct=3, share=0.1),
          "boost": {"down_projection": {"ratios": [2.0]}, "final_norm_gain": {"ratios": [1.5]}}}


def activity(step, used=0.5):
  rows = [{"active_fraction_batch": one, "active_fraction_token": used, "dead_fraction": 1 - used,
           "revived": 0.0} for one in (0.1, 0.9)]
  return {"step": step, "layers": rows}


DIMENSIONS = [dimensions(0, 0), dimensions(8), dimensions(STEPS)]
ACTIVITY = [activity(0, 0.5), activity(STEPS, 0.1)]
JUDGES = {
    "outlier_dimensions": {
        "appear": lambda names: rules.dimensions_appear(names, 8),
        "ablation": lambda names: rules.ablation_hurts(names, 0.05, 5),
        "frequent": lambda names: rules.alone_they_predict_few(names, 0.2),
        "boost": lambda names: rules.boosted(names, ("down_projection", "final_norm_gain"))},
    "sparsity": {
        "layers_differ": lambda names: rules.first_layer_uses_less(names, 0.5),
        "token_use": rules.token_use_falls,
        "death": lambda names: rules.units_die(names, 0.01),
        "prunable": lambda names: rules.prunable(names, 0.1, 0.01)}}
EVERY = [(analysis, claim) for analysis, judges in JUDGES.items() for claim in judges]


def varied(value, factor):
  """The same with numbers that differ a little between seeds; steps and counts stay."""
  if isinstance(value, dict):
    return {k: v if k == "step" else varied(v, factor) for k, v in value.items()}
  if isinstance(value, list):
    return [varied(v, factor) for v in value]
  return value * factor if isinstance(value, float) else value


@pytest.fixture
def judged(tmp_path):
  """Judges a claim on runs that hold these checkpoints, nearly; None: no analysis at all."""
  def judge(analysis, claim, steps, seeds=5, **more):
    runs = {}
    for seed in range(seeds):
      path = tmp_path / f"run{seed}"
      write_run(path, config([("train.steps", str(STEPS))]))
      if steps is not None:
        own = {"steps": steps, "pruning": {"share": 0.7, "loss_change": -0.0002}, **more}
        own = {k: [varied(one, (1 + seed / 500) ** (i + 1)) for i, one in enumerate(v)]
               if k == "steps" else varied(v, 1 + seed / 500) for k, v in own.items()}
        (path / f"{analysis}.json").write_text(json.dumps({
            "analysis": analysis, "batch_tokens": 8192, **own}))
      runs[path.name] = load_run(path)
    return JUDGES[analysis][claim]([*runs])(runs)

  return judge


@pytest.mark.parametrize("analysis, claim", EVERY)
def test_reproduced_where_it_holds(judged, analysis, claim):
  steps = DIMENSIONS if analysis == "outlier_dimensions" else ACTIVITY
  verdict = judged(analysis, claim, steps)
  parts = verdict.evidence["parts"]
  # Counts of so few dimensions agree in all seeds, which tells no spread.
  assert all(part["verdict"] == "reproduced" or part["method"] == "seeds without a spread"
             for part in parts), verdict
  assert parts[0]["verdict"] == "reproduced" or claim in ("frequent", "layers_differ")


@pytest.mark.parametrize("analysis, claim", EVERY)
@pytest.mark.parametrize("cut", ["not analysed", "stops early", "no run"])
def test_without_what_it_reads_it_is_inconclusive(judged, analysis, claim, cut):
  if cut == "no run":
    verdict = JUDGES[analysis][claim]([])({})
    assert "names no run" in verdict.summary
  else:
    steps = DIMENSIONS if analysis == "outlier_dimensions" else ACTIVITY
    verdict = judged(analysis, claim, None if cut == "not analysed" else steps[:-1])
  assert verdict.verdict == "inconclusive", verdict


@pytest.mark.parametrize("analysis, claim, steps, why", [
    # The issue's own: nothing is true of every checkpoint where there is none.
    ("outlier_dimensions", "appear", [dimensions(0, 0), dimensions(STEPS)], None),
    ("outlier_dimensions", "appear", [dimensions(8), dimensions(STEPS)], "step 0"),
    ("outlier_dimensions", "boost",
     [dimensions(0), {**dimensions(STEPS), "boost": {"down_projection": {"ratios": [2.0]}}}],
     "final_norm_gain"),
    ("outlier_dimensions", "ablation",
     [{**dimensions(STEPS), "without_outlier_dimensions": None}], "no outlier dimension"),
    ("outlier_dimensions", "ablation", [{**dimensions(STEPS), "full": mode(float("nan"))}],
     "undefined"),
    ("sparsity", "token_use", ACTIVITY[1:], "step 0"),
    ("sparsity", "death", ACTIVITY[1:], "step 0"),
    ("sparsity", "layers_differ", [{"step": STEPS, "layers": activity(0)["layers"][:1]}],
     "one layer"),
    ("sparsity", "layers_differ",
     [{"step": STEPS, "layers": [{"active_fraction_batch": 0.0}] * 2}], "first layer is active"),
    ("sparsity", "layers_differ",
     [{"step": STEPS, "layers": [{"active_fraction_batch": x} for x in (0.1, 0.5, 0.0)]}],
     "last layer is active"),
    ("sparsity", "layers_differ",
     [{"step": STEPS, "layers": [{"active_fraction_batch": x} for x in (None, 0.5)]}],
     "first layer is active"),
    ("sparsity", "death", [{"step": step, "layers": []} for step in (0, STEPS)], "number"),
    ("sparsity", "token_use", [{"step": step, "layers": []} for step in (0, STEPS)], "number"),
])
def test_what_says_nothing_decides_nothing(judged, analysis, claim, steps, why):
  verdict = judged(analysis, claim, steps)
  if why is None:
    assert verdict.verdict == "reproduced"
  else:
    assert verdict.verdict == "inconclusive" and why in verdict.summary


def test_no_checkpoint_from_the_step_on_is_inconclusive(tmp_path):
  path = tmp_path / "run"
  write_run(path, config([("train.steps", "8")]))
  (path / "outlier_dimensions.json").write_text(json.dumps({
      "analysis": "outlier_dimensions", "steps": [dimensions(0, 0), dimensions(8)]}))
  verdict = rules.dimensions_appear(["run"], 64)({"run": load_run(path)})
  assert verdict.verdict == "inconclusive"
  assert "no checkpoint from step 64 on" in verdict.summary


@pytest.mark.parametrize("pruning, expected", [
    (None, "inconclusive"), ({"share": 0.7, "loss_change": float("nan")}, "inconclusive"),
    ({"share": 0.01, "loss_change": 0.0}, "not reproduced"),
    ({"share": None, "loss_change": 0.0}, "inconclusive")])
def test_pruning_decides_where_it_was_done(judged, pruning, expected):
  assert judged("sparsity", "prunable", ACTIVITY, pruning=pruning).verdict == expected
