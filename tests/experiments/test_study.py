"""The study: what it trains, skips, refuses and records. The trainer is a stand-in."""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys
import time
import types

import pytest
from rich.console import Console

from of_jax import config as config_lib
from of_jax.claims.forecasts import Forecasts
from of_jax.commands import cli, studies, study
from of_jax.commands.studies import op_block
from of_jax.config import presets
from of_jax.errors import UserError
from of_jax.report import plots, terminal
from of_jax.storage import run_directory
from tests.analysis import synthetic


@pytest.fixture(autouse=True)
def no_figure(monkeypatch, request):
  """Drawing takes half a second a study; one test looks at it."""
  if "with_figure" not in request.fixturenames:
    monkeypatch.setattr(plots, "save", lambda runs, folder: None)
    monkeypatch.setattr(plots, "svg", lambda runs: [])


@pytest.fixture
def with_figure():
  """Asks for the real figure."""


@pytest.fixture
def override(monkeypatch):
  """Sets what the command line's --config.path=text flags say."""
  return lambda *pairs: monkeypatch.setattr(cli, "overrides", lambda: list(pairs))


@pytest.fixture
def few(monkeypatch):
  """The study cut down to four short runs, so that a test is quick."""
  smoke = op_block.SCALES["smoke"]
  names = list(smoke.runs)[:4]
  scale = dataclasses.replace(smoke, common=(("train.steps", "20"), ("train.eval_every", "10")),
                              runs={n: smoke.runs[n] for n in names})
  monkeypatch.setitem(op_block.SCALES, "smoke", scale)
  return names


class Trainer:
  def __init__(self):
    self.trained = []

  def __call__(self, config, path):
    self.trained.append(path.name)
    if path.exists():
      shutil.rmtree(path)
    synthetic.train(config, path)


def execute(root, trainer=None, **options):
  out = io.StringIO()
  study.execute("op_block", "smoke", root, train=trainer or Trainer(),
                console=Console(file=out, width=110), **options)
  return out.getvalue()


def test_trains_all_then_judges_and_ends_with_the_page(tmp_path, capsys, with_figure):
  trainer = Trainer()
  printed = execute(tmp_path / "s", trainer)
  assert trainer.trained == list(op_block.SCALES["smoke"].runs)
  page = tmp_path / "s" / "report.html"
  assert capsys.readouterr().out.splitlines()[-1] == str(page)
  assert page.is_file() and (tmp_path / "s" / "figure.png").stat().st_size > 10_000
  assert "wall time" in printed and printed.count("INCONCLUSIVE") == 2
  saved = json.loads((tmp_path / "s" / "study.json").read_text())
  assert {"study", "scale", "claims", "runs"} <= set(saved)
  assert [c["id"] for c in saved["claims"]] == ["op_kurtosis", "embedding_scale", "learning_rate"]
  for claim in saved["claims"]:
    assert {"id", "statement", "paper", "rule", "verdict", "evidence"} <= set(claim)
    # Two seeds or one do not tell; the numbers are those of the claims.
    assert claim["verdict"] == ("reproduced" if claim["id"] == "learning_rate" else "inconclusive")
    assert claim["margins_sha256"]
    assert synthetic.leaning(claim["evidence"], claim["verdict"]) == "reproduced"
    assert any(part["seeds_to_decide"] for part in claim["evidence"]["parts"]) == (
        claim["verdict"] == "inconclusive")
  first = saved["runs"][0]
  assert {"name", "workdir", "config_diff", "final_loss", "peak_kurtosis"} <= set(first)
  assert first["peak_kurtosis"] == pytest.approx(20.4)
  assert first["config_diff"]["model.embedding_scale"] == 8.0
  assert "train.steps" not in first["config_diff"]


def test_both_blocks_see_the_same_tokens(tmp_path):
  planned = study.plan(studies.load("op_block", "smoke"))
  assert len(planned) == 10
  for name, config in planned.items():
    other = planned[name.replace("pre_", "op_")]
    assert config.data == other.data and config.train == other.train
    assert config.optim == other.optim
    assert (other.model.block, other.model.beta, other.model.qk_norm) == ("op", 0.3, "rms")
    assert config.model.qk_norm == ("none" if name.startswith("pre") else "rms")
    assert config.train.steps <= 150


def test_norms_compares_at_least_ten_variants_on_the_same_tokens():
  planned = study.plan(studies.load("norms", "smoke"))
  assert len(planned) >= 10
  first, *rest = planned.values()
  for config in rest:
    assert (config.data, config.train, config.optim) == (first.data, first.train, first.optim)
  assert first.train.steps <= 150
  models = [dataclasses.replace(c.model, beta=None, beta_attention=None, beta_mlp=None)
            for c in planned.values()]
  assert len({(m.block, m.norm, m.qk_norm, m.beta_trainable) for m in models}) == len(planned)


def test_the_rules_are_on_disk_before_the_first_run(tmp_path, few):
  seen = []

  def trainer(config, path):
    seen.append(json.loads((tmp_path / "study.json").read_text()))
    synthetic.train(config, path)

  execute(tmp_path, trainer)
  assert all(c["rule"] and c["verdict"] == "inconclusive"
             and c["evidence"]["reason"] == "runs missing" for c in seen[0]["claims"])
  assert [r["final_loss"] for r in seen[0]["runs"]] == [None] * 4
  first, last = seen[0]["claims"][1], seen[3]["claims"][1]
  assert first["id"] == "embedding_scale" and "parts" in last["evidence"]
  assert first["margins"] and first["margins_sha256"] == last["margins_sha256"]


def test_an_interrupted_study_goes_on_and_a_finished_one_trains_nothing(tmp_path, few):
  class Stop(Exception):
    pass

  def dies(config, path):
    if path.name == few[2]:
      synthetic.write_run(path, config, steps=5, finished=False)
      raise Stop
    synthetic.train(config, path)

  with pytest.raises(Stop):
    execute(tmp_path, dies)
  trainer = Trainer()
  execute(tmp_path, trainer)
  assert trainer.trained == few[2:]
  trainer = Trainer()
  assert "finished before" in execute(tmp_path, trainer)
  assert trainer.trained == []


def test_each_run_is_analysed_once_before_its_claims_are_judged(tmp_path, few, monkeypatch):
  smoke = op_block.SCALES["smoke"]
  monkeypatch.setitem(op_block.SCALES, "smoke", dataclasses.replace(smoke, analyses=("sparsity",)))
  analysed = []

  def analyse(path, name):
    assert (path / "DONE").exists()
    analysed.append((path.name, name))
    (path / f"{name}.json").write_text(json.dumps(
        {"analysis": name, "tokens": 1, "batch_tokens": 1, "definition": "",
         "steps": [{"step": 0, "layers": []}]}))

  execute(tmp_path, analyse=analyse)
  assert analysed == [(name, "sparsity") for name in few]
  (tmp_path / few[1] / "sparsity.json").unlink()
  execute(tmp_path, analyse=analyse)
  assert analysed[4:] == [(few[1], "sparsity")]
  (tmp_path / few[0] / "sparsity.json").write_text("{}")
  with pytest.raises(UserError, match="not the analysis of that name"):
    execute(tmp_path, analyse=analyse)


def test_workers_share_the_runs_and_take_over_what_a_dead_one_held(tmp_path, few, monkeypatch):
  """Another worker holds one run: it is left, and taken once the holder is gone."""
  holder = contextlib.ExitStack()
  assert holder.enter_context(run_directory.claimed(tmp_path, few[1]))
  first, second = Trainer(), Trainer()

  def both(config, path):
    # While this worker trains its first run, a second one finds that run and the held one taken.
    if path.name == few[0]:
      with run_directory.claimed(tmp_path, few[0]) as is_ours:
        assert not is_ours
      execute(tmp_path, second)
    first(config, path)

  def look(seconds):
    # The second worker has nothing left but what others hold; then the dead one's claim falls.
    assert second.trained == few[2:] and first.trained == []
    holder.close()
    monkeypatch.setattr(study.time, "sleep", stop)

  def stop(seconds):
    raise TimeoutError

  monkeypatch.setattr(study.time, "sleep", look)
  with pytest.raises(TimeoutError):
    execute(tmp_path, both)
  assert second.trained == [*few[2:], few[1]]
  execute(tmp_path, first)
  assert first.trained == [few[0]]
  runs = json.loads((tmp_path / "study.json").read_text())["runs"]
  assert [run["name"] for run in runs if run["final_loss"] is not None] == few


def test_members_of_one_program_are_trained_together(tmp_path, monkeypatch):
  """Those that nobody else holds; what differs in more than members may is trained alone."""
  smoke = op_block.SCALES["smoke"]
  runs = {"a": (), "b": (("optim.learning_rate", "3e-3"),), "c": (("optim.b2", "0.9"),),
          "d": (("train.seed", "1"),), "e": (("optim.eps", "1e-3"),)}
  monkeypatch.setitem(op_block.SCALES, "smoke", dataclasses.replace(
      smoke, common=(("train.steps", "20"), ("train.eval_every", "10")), runs=runs, claims=()))
  together = []

  def train_together(members):
    together.append([path.name for path in members])
    for path, config in members.items():
      synthetic.train(config, path)
    # Meanwhile the other worker finishes the one that it holds.
    synthetic.train(study.plan(studies.load("op_block", "smoke"))["b"], tmp_path / "b")

  trainer = Trainer()
  with run_directory.claimed(tmp_path, "b"):
    printed = execute(tmp_path, trainer, vectorise=4, together=train_together)
  assert together == [["a", "d", "e"]] and trainer.trained == ["c"]
  assert "b (finished before, or by another worker)" in printed
  printed = execute(tmp_path, Trainer(), vectorise=4, together=train_together)
  assert len(together) == 1 and printed.count("finished before") == 5


def test_says_the_time_that_is_left_where_it_can_be_told(tmp_path, monkeypatch):
  """Runs of one size say nothing of another's, as of a ladder's largest."""
  runs = {name: (("train.steps", steps), ("optim.learning_rate", rate)) for name, steps, rate in (
      ("a", "20", "1e-2"), ("long", "40", "1e-2"), ("b", "20", "3e-3"), ("long_b", "40", "3e-3"),
      ("c", "20", "1e-3"))}
  monkeypatch.setitem(op_block.SCALES, "smoke", dataclasses.replace(
      op_block.SCALES["smoke"], common=(("train.eval_every", "10"),), runs=runs, claims=()))
  clock = [0.0]

  def train(config, path):
    clock[0] += 1.5 * config.train.steps
    synthetic.train(config, path)

  monkeypatch.setattr(study, "time", types.SimpleNamespace(
      time=time.time, sleep=time.sleep, monotonic=lambda: clock[0]))
  lines = [line for line in execute(tmp_path, train).splitlines() if line.startswith("run ")]
  assert lines == ["run 1 of 5: a", "run 2 of 5: long",
                   "run 3 of 5: b (about 2 min 00 s for the 3 left)",
                   "run 4 of 5: long_b (about 1 min 30 s for the 2 left)",
                   "run 5 of 5: c (about 30.0 s for the 1 left)"]


@pytest.mark.parametrize("vectorise", [1, 2])
@pytest.mark.parametrize("strict", [False, True])
def test_strict_resume_reaches_every_run(tmp_path, monkeypatch, few, strict, vectorise):
  import of_jax.sweep.trainer
  import of_jax.train
  told = []

  def train(config, workdir, strict_resume=False):
    told.append(strict_resume)
    synthetic.train(config, workdir)

  def together(runs, strict_resume=False):
    for workdir, config in runs.items():
      train(config, workdir, strict_resume)

  monkeypatch.setattr(of_jax.train, "train", train)
  monkeypatch.setattr(of_jax.sweep.trainer, "train_together", together)
  study.execute("op_block", "smoke", tmp_path / "study", console=Console(file=io.StringIO()),
                analyse=lambda path, name: None, vectorise=vectorise, strict_resume=strict)
  assert told and set(told) == {strict}


def test_a_run_that_is_wrongly_marked_goes_on(tmp_path, few):
  """Its record ends early, as where a copy brought DONE before the rest."""
  root = tmp_path / "study"
  execute(root)
  path = root / few[0] / "metrics.jsonl"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
  with pytest.raises(UserError, match=f"{few[0]}: is marked DONE, but metrics.jsonl goes to step"):
    execute(root, strict_resume=True)
  trainer = Trainer()
  said = execute(root, trainer)
  assert f"{few[0]}: is marked DONE, but metrics.jsonl goes to step" in said
  assert trainer.trained == [few[0]]
  (root / few[1] / "config.json").unlink()
  with pytest.raises(UserError, match=f"{few[1]}: is marked DONE and has no config.json"):
    execute(root)


@pytest.mark.parametrize("part, value", (
    ("ladders", "x"), ("ladders", [[]]), ("forecasts", 5), ("forecasts", [{}]), ("runs", [7]),
    ("claims", [{"id": "a", "rule": "b", "rule_at_start": 5}])))
def test_a_record_of_another_shape_is_one_line(tmp_path, few, part, value):
  record = {"study": "op_block", "scale": "smoke", "claims": [], "runs": []}
  (tmp_path / "study.json").write_text(json.dumps({**record, part: value}))
  with pytest.raises(UserError, match=f"study.json: its {part} are no list of objects with"):
    execute(tmp_path)


def test_overrides_reach_every_run_and_are_recorded(tmp_path, few, override):
  override(("model.width", "64"), ("train.steps", "40"))
  execute(tmp_path, corpus="text:mine.txt")
  saved = json.loads((tmp_path / "study.json").read_text())
  assert saved["overrides"] == {"data.corpus": "text:mine.txt", "model.width": "64",
                                "train.steps": "40"}
  for name in few:
    config = json.loads((tmp_path / name / "config.json").read_text())
    assert config["data"]["corpus"] == "text:mine.txt" and config["model"]["width"] == 64
    assert config["optim"]["warmup_steps"] == 5     # 13 % of the steps that were asked for


def test_dry_run_lists_and_leaves_nothing(tmp_path, few):
  def listed(root):
    out = io.StringIO()
    study.list_runs("op_block", "smoke", root, console=Console(file=out, width=110))
    return out.getvalue()

  nowhere = listed(None)
  assert all(name in nowhere for name in few) and "4 runs of 20 steps" in nowhere
  assert listed(tmp_path / "s") == nowhere and "yes" not in nowhere
  assert not (tmp_path / "s").exists()
  execute(tmp_path / "s")
  assert listed(tmp_path / "s").count("yes") == 4


def test_dry_run_says_only_what_a_run_has():
  out = io.StringIO()
  study.list_runs("optimisers", "smoke", None, console=Console(file=out, width=300))
  assert "name=soap" in out.getvalue() and "clip_norm=none" in out.getvalue()
  assert "b1=none" not in out.getvalue() and "=None" not in out.getvalue()


def test_dry_run_names_the_runs_whose_attention_gpus_do_not_fuse():
  configs = {name: config_lib.apply_overrides(presets.preset("1b"), fields) for name, fields in (
      ("plain", []), ("capped", [("model.attention_cap", "30")]),
      ("windowed", [("model.attention_window", "512")]))}
  out = io.StringIO()
  terminal.print_plan(Console(file=out, width=200), configs, None)
  assert out.getvalue().splitlines()[-2:] == [
      "On A100, H100, H200 or B200 attention is fused, by cuDNN: plain, windowed",
      "On A100, H100, H200 or B200 attention is unfused, some queries at a time (a softcap): "
      "capped"]


@pytest.mark.parametrize("path, text, message", [
    ("train.seed", "3", "the study varies train.seed itself"),
    ("model.blok", "op", "did you mean config.model.block"),
    ("model.heads", "5", "does not divide"),
])
def test_a_bad_override_is_refused_before_anything_is_written(tmp_path, override, path, text,
                                                              message):
  override((path, text))
  with pytest.raises(UserError, match=message):
    execute(tmp_path / "s")
  assert not (tmp_path / "s").exists()


def test_a_refusal_by_the_first_run_leaves_nothing(tmp_path, few):
  def refuses(config, path):
    raise UserError("config.data.corpus=text:no: no such file")

  with pytest.raises(UserError, match="no such file"):
    execute(tmp_path / "s", refuses)
  assert not (tmp_path / "s").exists()


def test_a_root_of_other_runs_is_refused(tmp_path, few, override):
  execute(tmp_path)
  override(("train.steps", "30"))
  with pytest.raises(UserError, match="train.steps=20, not 30"):
    execute(tmp_path)
  override()
  saved = json.loads((tmp_path / "study.json").read_text())
  (tmp_path / "study.json").write_text(json.dumps({**saved, "scale": "paper"}))
  with pytest.raises(UserError, match="holds study op_block at scale paper"):
    execute(tmp_path)


@pytest.mark.parametrize("name, scale, message", [
    ("op_blok", "smoke", "no such study; did you mean op_block?"),
    ("op_block", "smol", "no such scale; did you mean smoke?"),
    ("zzz", "smoke", "no such study; there are "),
])
def test_unknown_names(name, scale, message):
  with pytest.raises(UserError) as error:
    studies.load(name, scale)
  assert message in str(error.value)


@pytest.mark.parametrize("name, scale", [
    ("op_block", "smoke"), ("op_block", "small"), ("op_block", "paper"), ("norms", "smoke"),
    ("norms", "small"), ("optimisers", "smoke"), ("optimisers", "small"),
    ("outlier_dimensions", "smoke"), ("outlier_dimensions", "small"), ("relu_sparsity", "smoke"),
    ("relu_sparsity", "small"), ("scaling_width", "smoke"), ("scaling_width", "small"),
    ("scaling_width", "paper"), ("scaling_depth", "smoke"), ("scaling_depth", "small"),
    ("scaling_depth", "paper"), ("int8", "smoke")])
def test_every_declared_run_and_rule_stands(name, scale):
  declared = studies.load(name, scale)
  planned = study.plan(declared)
  assert len({str(config_lib.to_dict(c)) for c in planned.values()}) == len(declared.runs)
  for claim in declared.claims:
    verdict = claim.judge({})
    assert verdict.verdict == "inconclusive" and len(claim.rule) > 60
    assert set(verdict.evidence["runs"]) <= set(declared.runs)
    margins = claim.judge.tests(planned)
    assert margins and all(test.seeds > 0 for test in margins), claim.id
  assert len({claim.id for claim in declared.claims}) == len(declared.claims)
  forecasts = Forecasts(pathlib.Path(), declared.ladders, planned)
  assert all(len(held) == 3 for held in forecasts.held_out.values())


def test_on_the_command_line_a_mistake_is_one_line(tmp_path):
  done = subprocess.run(
      [sys.executable, "-m", "experiments.study", "--study=op_blok", f"--root={tmp_path / 's'}"],
      capture_output=True, text=True, cwd=study.__file__.rpartition("of_jax")[0])
  assert done.returncode == 1 and not (tmp_path / "s").exists()
  assert done.stderr == "error: --study=op_blok: no such study; did you mean op_block?\n"
