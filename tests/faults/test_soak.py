"""A soaked run, in small; and that what grows, or ends as it should not, is seen."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import page, soak
from tests.faults.run import Ended

ROOT = Path(__file__).parents[2]


def soaked(*arguments: str) -> str:
  """Runs the command, in a process that may fork; returns its table."""
  found = subprocess.run([sys.executable, "-m", "tests.faults.soak", *arguments], cwd=ROOT,
                         text=True, capture_output=True)
  assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-3000:]
  return found.stdout


def test_a_run_is_ended_and_started() -> None:
  lines = soaked("--steps=24", "--kill_every=12,14", "--checkpoint_every=6").splitlines()
  assert len(lines) == 4 and all(line.endswith("| yes |") for line in lines[2:])


@pytest.mark.slow
def test_a_run_is_soaked() -> None:
  lines = soaked("--steps=1200", "--kill_every=150,250", "--checkpoint_every=40").splitlines()
  assert int(lines[-1].split(" | ")[2].split(" ")[0]) >= 5


def run_of(name: str = "left alone", starts: int = 1, result: object = "bits",
           growing: float = 0.0) -> soak.Soaked:
  samples = [[float(step), 300.0 + growing * step, 20.0 + 9 * (step % 300 == 50),
              30.0 + growing * step, 7.0] for step in range(50, 20_000, 100)]
  return soak.Soaked(name, 20_000, Counter({"kill": starts - 1, "": 1}), samples, result, [])


def test_what_grows_is_seen() -> None:
  """Threads that every third save holds for a moment are no slope."""
  assert run_of().breaches() == []
  assert run_of(growing=0.01).breaches() == [
      "left alone: memory, MB grow by 10 every 1,000 steps; allowed are 2",
      "left alone: descriptors grow by 10 every 1,000 steps; allowed are 1.2"]
  assert soak.slope([0, 1, 2, 3], [1, 3, 5, 7]) == 2
  assert run_of(starts=41).allowed()[-1] == pytest.approx(run_of().allowed()[-1] + 4)


def test_the_table_says_whether_bits_are_the_same() -> None:
  rows = soak.table([run_of(), run_of("ended", 3), run_of("other", 3, "others")]).splitlines()
  assert [row.split(" | ")[0] for row in rows[2:]] == ["| left alone", "| ended", "| other"]
  assert [row.split(" | ")[-1] for row in rows[2:]] == ["yes |", "yes |", "NO |"]
  assert "| 3 (2 by kill) |" in rows[3]


def test_how_a_process_may_end() -> None:
  assert soak.faults_of(Ended(-9, []), "kill") == []
  assert soak.faults_of(Ended(75, ["told to stop"]), "term") == []
  assert soak.faults_of(Ended(0, ["finished"]), "int") == []
  assert "status 75" in soak.faults_of(Ended(75, []), "int")[0]
  assert "status 1 after nothing" in soak.faults_of(Ended(1, ["error: full"]), "")[0]
  assert len(soak.faults_of(Ended(-9, ["checkpoint 8 is damaged"]), "kill")) == 1


def test_what_is_left_is_seen(tmp_path: Path) -> None:
  for step in (0, 1, 10, 20, 17):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "checkpoints" / str(step) / "file").touch()
  assert soak.left(tmp_path, 20, 10, Counter(term=1)) == []
  assert len(soak.left(tmp_path, 20, 10, Counter(kill=1))) == 1
  (tmp_path / "checkpoints" / "10").rename(tmp_path / "checkpoints" / "10.set_aside")
  found = soak.left(tmp_path, 20, 10, Counter(term=9))
  assert "no checkpoint 10" in found[0] and "10.set_aside" in found[1]


def test_a_section_is_replaced(tmp_path: Path) -> None:
  path, mark = tmp_path / "page.md", page.begin("soak")
  path.write_text(f"a\n{mark}\nold\n{page.END}\nb\n{page.END}\n")
  page.Section("soak", ["--steps=7", "--write"]).write("| new |", path)
  text = path.read_text()
  assert text.startswith(f"a\n{mark}\n`python -m tests.faults.soak --steps=7`, ")
  assert text.endswith(f":\n\n| new |\n{page.END}\nb\n{page.END}\n") and "old" not in text
  path.write_text("nothing")
  with pytest.raises(ValueError, match="has no section"):
    page.Section("soak", []).write("| new |", path)
