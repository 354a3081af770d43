"""Reading run directories: peaks, torn lines, absent files, broken ones."""

import json
import math

import numpy as np
import pytest

from of_jax.analysis import runs
from of_jax.errors import UserError
from of_jax.report import plots, series
from tests.analysis.synthetic import config, write_run


def test_numbers_of_a_finished_run(tmp_path):
  write_run(tmp_path / "a", config(), kurtosis=20.4, loss=4.469, mmr=44.0, seconds=0.5)
  run = runs.load_run(tmp_path / "a")
  assert run.finished and not run.diverged and run.notes == ()
  assert run.peak("kurtosis") == pytest.approx(20.4)
  assert run.peak_at("kurtosis") == (1, 90)
  assert run.peak("mmr") == pytest.approx(44.0)
  assert run.final_loss == pytest.approx(4.469)
  assert run.seconds == pytest.approx(75.0)
  assert run.config == config()
  assert run.measured("kurtosis").values.shape == (150, 6)


def test_the_final_site_does_not_enter_the_peak(tmp_path):
  write_run(tmp_path / "a", config(), kurtosis=3.0)
  path = tmp_path / "a" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  lines[0]["telemetry"]["final"]["kurtosis"] = [99.0]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert runs.load_run(tmp_path / "a").peak("kurtosis") == pytest.approx(3.0)


def test_a_torn_last_line_is_left_out(tmp_path):
  write_run(tmp_path / "a", config(), steps=40, finished=False)
  path = tmp_path / "a" / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 41, "split": "train", "lo')
  assert runs.load_run(tmp_path / "a").steps_done == 40


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
  write_run(tmp_path / "a", config())
  path = tmp_path / "a" / "metrics.jsonl"
  lines = path.read_text().splitlines()
  lines[6] = lines[6][:20]
  path.write_text("\n".join(lines))
  with pytest.raises(UserError, match="metrics.jsonl, line 7"):
    runs.load_run(tmp_path / "a")


def test_a_run_that_has_only_begun(tmp_path):
  write_run(tmp_path / "a", config(), steps=0, finished=False)
  for name in ("env.json", "metrics.jsonl", "timing.jsonl"):
    (tmp_path / "a" / name).unlink()
  run = runs.load_run(tmp_path / "a")
  assert run.steps_done == 0 and math.isnan(run.final_loss) and math.isnan(run.seconds)
  assert math.isnan(run.peak("kurtosis")) and run.peak_at("kurtosis") is None


def test_a_finished_run_without_metrics_is_an_error(tmp_path):
  write_run(tmp_path / "a", config())
  (tmp_path / "a" / "metrics.jsonl").unlink()
  with pytest.raises(UserError, match="metrics.jsonl: missing"):
    runs.load_run(tmp_path / "a")


def test_no_run_directory(tmp_path):
  with pytest.raises(UserError, match="not a run directory"):
    runs.load_run(tmp_path)


def test_nulls_are_nan_and_mean_divergence(tmp_path):
  write_run(tmp_path / "a", config(), kurtosis=20.4, nan_from=100)
  run = runs.load_run(tmp_path / "a")
  assert run.diverged and math.isnan(run.final_loss)
  assert run.peak("kurtosis") == pytest.approx(20.4)


def test_a_resumed_run_counts_a_repeated_step_once_and_takes_the_later(tmp_path):
  write_run(tmp_path / "a", config())
  path = tmp_path / "a" / "metrics.jsonl"
  again = json.loads(path.read_text().splitlines()[9])
  again["loss"] = 1.0
  path.write_text(path.read_text() + json.dumps(again) + "\n")
  train = runs.load_run(tmp_path / "a").train
  assert train.steps.size == 150 and train.loss[9] == 1.0


def test_telemetry_on_every_tenth_step_only(tmp_path):
  write_run(tmp_path / "a", config(), kurtosis=7.0)
  path = tmp_path / "a" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines:
    if line["step"] % 10:
      line.pop("telemetry", None)
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  run = runs.load_run(tmp_path / "a")
  assert run.measured("kurtosis").steps.tolist() == list(range(10, 151, 10))
  assert not run.diverged


def test_find_runs(tmp_path):
  write_run(tmp_path / "b", config())
  write_run(tmp_path / "a", config())
  (tmp_path / "notes").mkdir()
  assert [p.name for p in runs.find_runs(tmp_path)] == ["a", "b"]
  assert runs.find_runs(tmp_path / "a") == [tmp_path / "a"]
  assert runs.find_runs(tmp_path / "none") == []


def test_more_folders_than_anybody_has_runs(tmp_path, monkeypatch):
  monkeypatch.setattr(runs, "_MOST_FOLDERS", 3)
  for name in "abc":
    (tmp_path / name).mkdir()
  with pytest.raises(UserError, match="has more than 3 folders to look through; give one that is"):
    runs.find_all_runs(tmp_path)
  assert runs.find_all_runs(tmp_path / "a") == {}


def test_thinning_keeps_the_peak_and_the_mean():
  steps = np.arange(1, 1001)
  values = np.ones(1000)
  values[537] = 400.0
  thin_steps, largest = series.thin(steps, values, 50, largest=True)
  assert thin_steps.size == 50 and largest.max() == 400.0 and thin_steps[-1] == 1000
  _, mean = series.thin(steps, values, 50)
  assert mean.max() == pytest.approx((400 + 19) / 20)
  values[:20] = np.nan
  assert np.isnan(series.thin(steps, values, 50)[1][0])


def test_panels_colours_and_dashes(tmp_path):
  settings = {
      "p8": [("model.embedding_scale", "8")], "p50": [("model.embedding_scale", "50")],
      "o8": [("model.embedding_scale", "8"), ("model.block", "op"), ("model.beta", "0.3")],
      "o8b": [("model.embedding_scale", "8"), ("model.block", "op"), ("model.beta", "0.3"),
              ("train.seed", "1")]}
  for name, overrides in settings.items():
    write_run(tmp_path / name, config(overrides))
  arranged = {s.run.name: s for s in series.arrange(
      {n: runs.load_run(tmp_path / n) for n in settings})}
  assert arranged["p8"].condition == arranged["o8"].condition == "embedding scale 8"
  assert arranged["p50"].condition == "embedding scale 50"
  assert arranged["p8"].colour == arranged["p50"].colour != arranged["o8"].colour
  assert (arranged["o8"].dash, arranged["o8b"].dash) == ("solid", "dash")


def test_a_run_of_an_older_version_has_todays_defaults(tmp_path):
  """Fields that came since are filled as for a new run; a combination refused since stays."""
  write_run(tmp_path / "a", config(), kurtosis=3.0)
  path = tmp_path / "a" / "config.json"
  sections = json.loads(path.read_text())
  del sections["model"]["final_norm_kind"], sections["model"]["head_dim"]
  path.write_text(json.dumps(sections))
  assert runs.load_run(tmp_path / "a").config == config()
  sections["optim"]["decay_fraction"] = 0.5
  path.write_text(json.dumps(sections))
  assert runs.load_run(tmp_path / "a").config.optim.decay_fraction == 0.5


def test_where_the_block_is_one_the_optimiser_is_the_group(tmp_path):
  settings = {"adamw": [], "adamw_slow": [("optim.learning_rate", "3e-4")],
              "lion": [("optim.name", "lion")],
              "lion_slow": [("optim.name", "lion"), ("optim.learning_rate", "3e-4")]}
  for name, overrides in settings.items():
    write_run(tmp_path / name, config(overrides))
  loaded = {n: runs.load_run(tmp_path / n) for n in settings}
  arranged = series.arrange(loaded)
  assert [s.group for s in arranged] == ["adamw", "adamw", "lion", "lion"]
  assert len({s.colour for s in arranged}) == 2
  items, said = plots.headline(loaded)
  assert [s.run.name for s in items] == ["adamw", "lion"] and said == "learning rate 0.001"


def test_where_nothing_is_held_settings_stand_side_by_side(tmp_path):
  settings = {"adamw": [], "adamw_eps": [("optim.eps", "1e-4")],
              "lion": [("optim.name", "lion"), ("optim.learning_rate", "1e-3")],
              "lion_slow": [("optim.name", "lion"), ("optim.learning_rate", "3e-4")]}
  for name, overrides in settings.items():
    write_run(tmp_path / name, config(overrides))
  loaded = {n: runs.load_run(tmp_path / n) for n in settings}
  items, said = plots.headline(loaded)
  assert [s.run.name for s in items] == list(settings) and said == ""
  assert len({s.colour for s in items}) == 4
  items, _ = plots.headline({n: loaded[n] for n in ("adamw", "adamw_eps")})
  assert [s.group for s in items] == ["eps 1e-08", "eps 0.0001"]
  # Of more than a panel can hold, each is shown at its first.
  many = {f"{name}{i}": [("optim.name", name), ("optim.learning_rate", f"{rate}{i}e-4")]
          for name, rate in (("adamw", ""), ("lion", "1")) for i in range(1, 8)}
  for name, overrides in many.items():
    write_run(tmp_path / name, config(overrides), steps=2)
  items, said = plots.headline({n: runs.load_run(tmp_path / n) for n in many})
  assert [s.run.name for s in items] == ["adamw1", "lion1"] and "first" in said


def test_what_is_measured_and_when_makes_no_setting(tmp_path):
  settings = {"a": [], "b": [("telemetry.level", "full"), ("train.log_every", "5")],
              "c": [("train.checkpoint_every", "10")]}
  for name, overrides in settings.items():
    write_run(tmp_path / name, config(overrides))
  items = series.arrange({n: runs.load_run(tmp_path / n) for n in settings})
  assert {(s.group, s.condition) for s in items} == {("pre", "")}
  # The same in all that is trained: only their names tell their curves apart.
  assert [s.label for s in items] == list(settings) and all(s.is_alike for s in items)
