"""A list of runs: what it says of each, as a table, CSV and JSON."""

import csv
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from of_jax.analysis.runs import find_all_runs
from of_jax.report import listing
from tests.analysis.synthetic import config, write_run

ROOT = Path(__file__).parents[2]
TITLE = "what is not as in most runs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
  """Holds a finished run, one that goes on, one that diverged, and a broken one."""
  root = tmp_path / "runs"
  write_run(root / "done", config(), kurtosis=20.4, loss=4.469)
  write_run(root / "going", config([("optim.learning_rate", "0.5")]), loss=4.2, steps=50,
            finished=False, seconds=0.4)
  write_run(root / "lost" / "diverged", config(), nan_from=60)
  (root / "broken").mkdir()
  (root / "broken" / "config.json").write_text("{")
  return root


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "experiments.runs", *arguments], cwd=ROOT,
                        capture_output=True, text=True, timeout=120)


def test_what_is_said_of_each(folder: Path) -> None:
  found = listing.describe(*listing.read(find_all_runs(folder)))
  by_name = {one["run"]: one for one in found}
  assert list(by_name) == ["done", "going", "lost/diverged", "broken"]
  done, going = by_name["done"], by_name["going"]
  assert done["status"] == "finished" and done["seconds_left"] == 0
  assert done["validation_loss"] == pytest.approx(4.469)
  assert (done["peak_kurtosis_layer"], done["peak_kurtosis_step"]) == (1, 90)
  # 100 records of 0.4 s, a record a step.
  assert going["status"] == "step 50 of 150" and going["seconds_left"] == pytest.approx(40)
  assert going["config_diff"] == {"optim.learning_rate": 0.5} and done["config_diff"] == {}
  assert by_name["lost/diverged"]["status"] == "diverged"
  assert "config.json" in by_name["broken"]["fault"]
  late = listing.describe(*listing.read(find_all_runs(folder)), now=time.time() + 3600)
  assert [one["run"] for one in late if one.get("is_silent")] == ["going"]


def test_orders(folder: Path) -> None:
  os.utime(folder / "going" / "metrics.jsonl", (2e9, 2e9))
  read = listing.read(find_all_runs(folder))
  names = {sort: [one["run"] for one in listing.describe(*read, sort)] for sort in listing.SORTS}
  assert names["kurtosis"][0] == "done" and names["loss"][:2] == ["going", "done"]
  assert names["updated"][0] == "going" and names["name"] == sorted(names["name"][:-1]) + ["broken"]


def test_the_command(folder: Path, tmp_path: Path) -> None:
  files = [f"--{name}={tmp_path / name}" for name in ("csv", "json", "metrics_csv")]
  said = run(f"--root={folder}", *files)
  assert said.returncode == 0, said.stderr
  assert "learning_rate=0.5" in said.stdout and "cannot be read" in said.stdout
  rows = {row["run"]: row for row in csv.DictReader((tmp_path / "csv").read_text().splitlines())}
  assert float(rows["done"]["peak_kurtosis"]) == pytest.approx(20.4)
  assert rows["going"]["config.optim.learning_rate"] == "0.5"
  value = json.loads((tmp_path / "json").read_text())
  assert value["runs"][2]["status"] == "diverged" and value["runs"][2]["validation_loss"] is None
  tidy = [*csv.DictReader((tmp_path / "metrics_csv").read_text().splitlines())]
  assert {row["run"] for row in tidy} == {"done", "going", "lost/diverged"}
  peak = max(float(row["value"]) for row in tidy if row["run"] == "done" and row["value"]
             and (row["site"], row["metric"]) == ("resid_pre", "kurtosis"))
  assert peak == pytest.approx(20.4)


def test_watching_ends_with_the_runs(folder: Path) -> None:
  command = [sys.executable, "-m", "experiments.runs", f"--root={folder}", "--watch", "--every=0.3"]
  said = ""
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watching:
    late = threading.Timer(120, watching.kill)
    late.start()
    assert watching.stdout is not None
    for line in watching.stdout:
      said += line
      if TITLE in line:
        (folder / "going" / "DONE").touch()
    late.cancel()
  assert watching.returncode == 0
  # Not a terminal: once at first, and once more when something changed.
  assert said.count(TITLE) == 2
  assert "step 50 of 150" in said.split(TITLE)[1]


@pytest.mark.parametrize("arguments, message", (
    ([], "--root: needs a value"), (["--root=nowhere"], "nowhere: no such folder"),
    (["--root=docs"], "--root=docs: holds no run directory"),
    (["--root=docs", "--csv=-", "--json=-"], "--json=-: --csv is printed already"),
    (["--root=docs", "--csv=docs"], "--csv=docs: is a folder")))
def test_mistakes(arguments: list[str], message: str) -> None:
  said = run(*arguments)
  assert said.returncode == 1 and said.stderr.count("\n") == 1 and message in said.stderr
