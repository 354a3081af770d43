"""Runs as tables: every number once, by step, split, site, layer and metric."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import of_jax
from of_jax.analysis import tidy
from of_jax.errors import UserError
from tests.analysis.synthetic import config, write_run


def test_every_number_is_a_row(tmp_path: Path) -> None:
  write_run(tmp_path / "a", config(), kurtosis=20.4, loss=4.469)
  run = of_jax.analysis.load_run(tmp_path / "a")
  table = run.metrics()
  assert list(table.columns) == ["step", "split", "site", "layer", "metric", "value"]
  # 150 steps: loss, rate and gradient, 7 metrics of 6 layers and of the last; 6 evaluations.
  assert len(table) == 150 * (3 + 7 * 7) + 6
  peaks = table[(table.site == "resid_pre") & (table.metric == "kurtosis")]
  assert peaks.value.max() == pytest.approx(run.peak("kurtosis"), abs=0)
  top = peaks.loc[peaks.value.idxmax()]
  assert (top.layer, top.step) == run.peak_at("kurtosis")
  losses = table[(table.split == "eval") & (table.metric == "loss")]
  assert losses.value.iloc[-1] == run.final_loss and losses.layer.isna().all()
  # An empty name, which groupby keeps.
  assert set(losses.site) == {""}
  wide = peaks.pivot(index="step", columns="layer", values="value").to_numpy()
  assert (wide == run.measured("kurtosis").values).all()


def test_lists_null_optimisers_and_repeated_steps(tmp_path: Path) -> None:
  write_run(tmp_path / "a", config(), steps=0, finished=False)
  lines = [
      {"step": 2, "split": "train", "loss": 1.0, "telemetry": {}},
      {"step": 1, "split": "train", "loss": None, "optimizer": {"hidden": {"nu_tail": [2, None]}}},
      {"step": 2, "split": "train", "loss": 0.5,
       "telemetry": {"final": {"top_neurons": [[7, 3]], "rms": 4.0}}}]
  (tmp_path / "a" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  found = [*tidy.rows(tmp_path / "a")]
  assert math.isnan(found[0].value) and found[0][:5] == (1, "train", "", None, "loss")
  assert found[1] == (1, "train", "hidden parameters", 0, "nu_tail", 2.0)
  assert math.isnan(found[2].value) and found[2].layer == 1
  assert found[3:] == [(2, "train", "", None, "loss", 0.5),
                       (2, "train", "final", 0, "top_neurons[0]", 7.0),
                       (2, "train", "final", 0, "top_neurons[1]", 3.0),
                       (2, "train", "final", 0, "rms", 4.0)]


def test_runs_below_a_folder(tmp_path: Path) -> None:
  write_run(tmp_path / "study" / "b", config())
  write_run(tmp_path / "a", config(), steps=40, finished=False)
  # In a run directory, or hidden: no runs of their own.
  write_run(tmp_path / "a" / "copy", config())
  write_run(tmp_path / ".trash" / "c", config())
  for step in ("0", "100", "20", "7.orbax-checkpoint-tmp", "0010"):
    (tmp_path / "a" / "checkpoints" / step).mkdir(parents=True)
  runs = of_jax.analysis.load_runs(tmp_path)
  assert list(runs) == ["a", "study/b"] and runs["a"].steps_done == 40
  assert runs["a"].checkpoints == (0, 20, 100) and runs["study/b"].checkpoints == ()
  assert list(of_jax.analysis.load_runs(tmp_path / "a")) == ["a"]
  with pytest.raises(UserError, match="none: no such folder"):
    of_jax.analysis.load_runs(tmp_path / "none")


def test_without_pandas_or_jax(tmp_path: Path) -> None:
  write_run(tmp_path / "a", config())
  code = f"""
import sys
sys.modules["pandas"] = None
import of_jax
run = of_jax.analysis.load_run({str(tmp_path / "a")!r})
try:
  run.metrics()
except of_jax.errors.UserError as error:
  print(error, "jax" in sys.modules, sum(1 for _ in of_jax.analysis.tidy.rows(run.path)))
"""
  said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert ".[pandas]" in said.stdout and said.stdout.split()[-2:] == ["False", "7806"]
