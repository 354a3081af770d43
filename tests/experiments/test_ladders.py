"""Ladders: the forecast is on disk before the run that it is of, once, whoever is killed when."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from of_jax.claims.forecasts import Forecasts
from of_jax.commands import studies, study
from of_jax.commands.studies import op_block
from of_jax.errors import UserError
from of_jax.report import plots
from of_jax.scaling import alarm_simulation
from of_jax.scaling.ladder import Ladder
from tests.analysis import synthetic

WIDTHS = (16, 32, 64, 96, 128)
SEEDS = (0, 1)
NAMES = [f"w{width}_{seed}" for width in WIDTHS for seed in SEEDS]
LADDER = Ladder("kurtosis", "peak_kurtosis", "power", "width", tuple(NAMES))


def scale(ladder=LADDER, names=NAMES):
  smoke = op_block.SCALES["smoke"]
  return dataclasses.replace(
      smoke, common=(("train.steps", "20"), ("train.eval_every", "10"), ("model.heads", "4")),
      runs={name: (("model.width", name[1:].split("_")[0]), ("train.seed", name[-1]))
            for name in names}, claims=(), ladders=(ladder,))


def kurtosis(width, seed):
  """A power of the width with a little noise."""
  return 0.5 * width ** 0.8 * (1.05, 0.97)[seed]


def train(config, path):
  synthetic.write_run(path, config, loss=4.0, kurtosis=kurtosis(
      config.model.width, config.train.seed))


@pytest.fixture(autouse=True)
def ladder_study(monkeypatch):
  monkeypatch.setattr(plots, "save", lambda runs, folder: None)
  monkeypatch.setattr(plots, "svg", lambda runs: [])
  monkeypatch.setitem(op_block.SCALES, "smoke", scale())


def execute(root, trainer=train, **options):
  out = io.StringIO()
  study.execute("op_block", "smoke", root, train=trainer, console=Console(file=out, width=200),
                **options)
  return out.getvalue()


def record(root):
  return json.loads((root / "study.json").read_text())


def test_forecast_before_the_run_and_scored_after(tmp_path):
  seen = []

  def trainer(config, path):
    seen.append((path.name, record(tmp_path)["forecasts"]))
    train(config, path)

  printed = execute(tmp_path, trainer)
  assert [name for name, _ in seen] == NAMES
  assert all(not found for _, found in seen[:8])
  (one, two), file = record(tmp_path)["forecasts"], tmp_path / "forecasts" / "kurtosis.json"
  for _, found in seen[8:]:
    assert [entry["sha256"] for entry in found] == [one["sha256"]] * 2
  assert seen[8][1][0]["score"] is None and seen[8][1][0]["median"] == one["median"]
  assert {"run", "y", "size", "median", "interval_50", "interval_90", "law", "data_sha256",
          "written_at", "score"} <= set(one)
  assert (one["run"], two["run"], one["size"]) == (NAMES[8], NAMES[9], 128)
  assert one["median"] == pytest.approx(0.5 * 128 ** 0.8, rel=0.08)
  low, high = one["interval_90"]
  assert low < one["interval_50"][0] < one["median"] < one["interval_50"][1] < high
  assert one["score"]["y"] == pytest.approx(kurtosis(128, 0)) and one["score"]["is_inside"]
  assert f"written {one['written_at']}, sha256 {one['sha256'][:12]}" in printed
  assert "came to 25.46, inside" in printed
  # Nothing is forecast again, also where nothing else is left to do.
  before = file.read_bytes()
  execute(tmp_path, None)
  assert file.read_bytes() == before and record(tmp_path)["forecasts"] == [one, two]


@pytest.mark.slow
def test_workers_and_programs_of_several_runs_wait(tmp_path):
  groups = []

  def together(runs):
    groups.append([path.name for path in runs])
    assert not ({*groups[-1]} & {*NAMES[8:]}) or record(tmp_path)["forecasts"]
    for path, config in runs.items():
      train(config, path)

  with study.run_directory.claimed(tmp_path, NAMES[0]):
    with pytest.raises(TimeoutError), pytest.MonkeyPatch.context() as patch:
      # The other worker holds one run: nothing that is held out starts meanwhile.
      patch.setattr(study.time, "sleep", lambda seconds: (_ for _ in ()).throw(TimeoutError))
      execute(tmp_path, vectorise=2, together=together)
    assert not any((tmp_path / name).exists() for name in (NAMES[0], *NAMES[8:]))
  execute(tmp_path, vectorise=2, together=together)
  assert groups[-1] == NAMES[8:] and len(record(tmp_path)["forecasts"]) == 2


def changed(root, ladder=LADDER, names=NAMES):
  """Returns the error of a second command whose study is declared otherwise."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(op_block.SCALES, "smoke", scale(ladder, names))
    with pytest.raises(UserError) as error:
      execute(root)
  return str(error.value)


@pytest.mark.slow
def test_what_was_declared_and_written_stays(tmp_path):
  execute(tmp_path)
  file = tmp_path / "forecasts" / "kurtosis.json"
  for ladder, field in ((dataclasses.replace(LADDER, law="power_offset"), "law"),
                        (dataclasses.replace(LADDER, y="last_kurtosis"), "y"),
                        (dataclasses.replace(LADDER, runs=tuple(NAMES[:-1])), "runs")):
    assert f"ladder kurtosis was declared with another {field}" in changed(tmp_path, ladder)
  assert "other ladders (kurtosis, not b)" in changed(
      tmp_path, dataclasses.replace(LADDER, id="b"))
  text = file.read_text()
  file.write_text(text.replace('"median": ', '"median": 1'))
  with pytest.raises(UserError, match="was changed after it was written"):
    execute(tmp_path)
  file.unlink()
  with pytest.raises(UserError, match="a forecast is never made again"):
    execute(tmp_path)
  file.write_text(text)
  execute(tmp_path)


@pytest.mark.slow
def test_no_forecast_of_what_has_begun_or_cannot_be_fitted(tmp_path):
  planned = study.plan(studies.load("op_block", "smoke"))
  train(planned[NAMES[8]], tmp_path / "a" / NAMES[8])
  assert f"{NAMES[8]} had begun before there was a forecast" in execute(tmp_path / "a")
  entry, _ = record(tmp_path / "a")["forecasts"]
  assert entry["median"] is None and entry["score"] is None

  def diverges(config, path):
    synthetic.write_run(path, config, nan_from=5 if config.model.width < 100 else None)

  assert "no run can be used: 8 diverged" in execute(tmp_path / "b", diverges)


@pytest.mark.parametrize("change, message", [
    ({"runs": tuple(NAMES[:8])}, "4 sizes (16, 32, 64, 96), of at least 5"),
    ({"runs": (*NAMES, "w9_0")}, "the study has no run w9_0"),
    ({"size": "parameters"}, "size parameters is no number of a config"),
    ({"law": "powr"}, "ladder kurtosis: --law=powr: no such law; did you mean power?"),
    ({"law": "a * flops^b"}, "flops"), ({"layer": "most"}, "--layer=most")])
def test_a_ladder_that_cannot_be_forecast_is_refused_at_once(tmp_path, change, message):
  assert message in changed(tmp_path / "s", dataclasses.replace(LADDER, **change))
  assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_run_that_diverges_is_scored_as_that(tmp_path):
  def trainer(config, path):
    bad = path.name == NAMES[9]
    synthetic.write_run(path, config, nan_from=5 if bad else None, kurtosis=kurtosis(
        config.model.width, config.train.seed))

  assert f"{NAMES[9]}: diverged" in execute(tmp_path, trainer)
  assert record(tmp_path)["forecasts"][1]["score"] == {"y": None, "why": "diverged"}


def test_a_run_that_leaves_its_band_is_one_line_and_a_file(tmp_path):
  """Kurtosis is tripled from some step on in one of the held-out runs."""
  rng = np.random.default_rng(0)

  def trainer(config, path):
    train(config, path)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
      if "telemetry" in line:
        own = line["telemetry"]["resid_pre"]
        change = 3 if path.name == NAMES[9] and line["step"] >= 15 else 1
        factor = change * float(np.exp(0.03 * rng.standard_normal()))
        own["kurtosis"] = [value * factor for value in own["kurtosis"]]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

  printed = execute(tmp_path, trainer)
  assert printed.count("left ladder kurtosis") == 1
  file = tmp_path / NAMES[9] / "alarms.jsonl"
  alarms = [json.loads(line) for line in file.read_text().splitlines()]
  assert 15 <= alarms[0]["step"] < 20 and alarms[0]["kind"] in ("level", "jump")
  assert f"{NAMES[9]} left ladder kurtosis at step {alarms[0]['step']}: kurtosis" in printed
  assert not (tmp_path / NAMES[8] / "alarms.jsonl").exists()
  page = (tmp_path / "report.html").read_text()
  assert f"left ladder kurtosis at step {alarms[0]['step']}" in page
  entry = record(tmp_path)["runs"][9]
  assert entry["alarms"] == alarms and record(tmp_path)["runs"][8]["alarms"] == []


def test_false_and_true_alarms_are_counted():
  rows = alarm_simulation.count(40)
  assert all(row["false_alarms"] <= 0.1 and row["found"] >= 0.9 for row in rows), rows


KILLED = """
import os, signal, sys
from pathlib import Path
from of_jax.commands import study
from of_jax.commands.studies import op_block
from of_jax.claims import forecasts
from of_jax.report import plots
from tests.experiments import test_ladders
op_block.SCALES["smoke"] = test_ladders.scale()
plots.save, plots.svg = lambda runs, folder: None, lambda runs: []
root, place = Path(sys.argv[1]), sys.argv[2]
write_json, write = forecasts.write_json, study._Record.write
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
def before_file(path, value):
  if place == "before the file": die()
  write_json(path, value)
  if place == "after the file": die()
def before_record(self):
  write(self)
  if place == "after the record" and (root / "forecasts").exists(): die()
forecasts.write_json, study._Record.write = before_file, before_record
def train(config, path):
  if place == "in the held-out run" and path.name == test_ladders.NAMES[8]: die()
  test_ladders.train(config, path)
test_ladders.execute(root, train)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", [
    "after the file", "before the file", "after the record", "in the held-out run"])
def test_killed_at_any_point_nothing_is_forecast_twice(tmp_path, place):
  done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), place], text=True,
                        capture_output=True, cwd=Path(__file__).parents[2],
                        env={**os.environ, "PYTHONPATH": "."})
  assert done.returncode == -signal.SIGKILL, done.stderr
  file = tmp_path / "forecasts" / "kurtosis.json"
  assert file.exists() == (place != "before the file")
  assert not (tmp_path / NAMES[8]).exists()
  before = file.read_bytes() if file.exists() else None
  execute(tmp_path)
  assert before in (None, file.read_bytes())
  assert [entry["score"]["is_inside"] for entry in record(tmp_path)["forecasts"]] == [True, True]


OWN = """
from of_jax.commands.studies import Scale
SCALES = {"smoke": Scale("mine.py", (), {"a": (), "b": (("train.seed", "1"),)}, (), {})}
"""


def test_a_study_of_ones_own_from_anywhere(tmp_path):
  (tmp_path / "mine.py").write_text(
      "from of_jax.config import presets\ndef get_config():\n  return presets.smoke()\n")
  file = tmp_path / "of_mine.py"
  file.write_text(OWN)
  assert [*study.plan(studies.load(str(file), "smoke"))] == ["a", "b"]
  for path, text, message in (
      ("of_mine.py", OWN, "no such scale"), ("gone.py", None, "no such file"),
      ("op_block.py", OWN, "name of a study here"), ("bad.py", "1 / 0", "division by zero"),
      ("none.py", "SCALES = 3", "defines no SCALES")):
    if text is not None:
      (tmp_path / path).write_text(text)
    with pytest.raises(UserError) as error:
      studies.load(str(tmp_path / path), "smol" if path == "of_mine.py" else "smoke")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_is_not_held_out_and_fitted(tmp_path):
  configs = study.plan(scale())
  # Held out by one: the widest; fitted by the other, whose size is the seed of a run.
  other = Ladder("b", "final_loss", "power", "width", tuple(NAMES))
  assert Forecasts(tmp_path, (LADDER, other), configs).waiting() == {*NAMES[8:]}
  with pytest.raises(UserError, match="need different ids"):
    Forecasts(tmp_path, (LADDER, LADDER), configs)
