"""A sample of the injected faults, and that a fault which is not survived is seen."""

import collections
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import run as faults

ROOT = Path(__file__).parents[2]


def survived(seed: int, count: int, kinds: str, workers: int = 1) -> int:
  """Runs trials, in a process that may fork; returns how many ended in the same bits."""
  found = subprocess.run(
      [sys.executable, "-m", "tests.faults.run", f"--seed={seed}", f"--count={count}",
       f"--kinds={kinds}", f"--workers={workers}"], cwd=ROOT, text=True, capture_output=True)
  assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-3000:]
  row = re.search(r"\| all \| (\d+) \| (\d+) \|", found.stdout)
  assert row and int(row[1]) == count, found.stdout
  return int(row[2])


def test_a_sample_of_faults_is_survived() -> None:
  assert survived(5, 2, "int,full") == 2


@pytest.mark.slow
def test_faults_are_survived() -> None:
  assert survived(1000, 60, ",".join(faults.KINDS), 2) >= 45


def test_what_a_process_may_not_do() -> None:
  assert faults.Ended(0, ["done"]).fault() == ""
  assert faults.Ended(1, ["error: no space"]).fault() == ""
  assert faults.Ended(1, ["error: no space", "error: again"]).fault() == "traceback"
  assert faults.Ended(1, []).fault() == "traceback"
  for line in ("x.py:3: RuntimeWarning: coroutine was never awaited", "WARNING:absl:no space",
               "E1127 12:00:00.0 7 x.cc:3] failed", "Task exception was never retrieved",
               "error: a fault of of_jax: KeyError at loop.py:3: 'x'"):
    assert faults.Ended(1, [line, "error: no space"]).fault() == "traceback", line
  assert faults.Ended(130, ["Traceback (most recent call last):"]).fault() == "traceback"
  assert faults.Ended(-11, []).fault() == "traceback"
  assert faults.Ended(None, []).fault() == "hang"


def test_the_table_counts() -> None:
  counts = collections.Counter({("kill", "bit-equal"): 3, ("damage", "one line"): 1})
  assert faults.table(counts).splitlines()[2:] == [
      "| kill | 3 | 3 | 0 | 0 | 0 | 0 | 0 |", "| damage | 1 | 0 | 1 | 0 | 0 | 0 | 0 |",
      "| all | 4 | 3 | 1 | 0 | 0 | 0 | 0 |"]


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """One that does nothing, and one that works for too long; one that works on does not hang."""
  monkeypatch.setattr(faults, "_SECONDS", 2.0)
  bench = object.__new__(faults.Bench)
  for program, a_step, status in (("import time; time.sleep(60)", 9, None),
                                  ("while True: pass", 0, None),
                                  ("import time\nwhile time.process_time() < 1: pass", 9, 0)):
    monkeypatch.setattr(faults, "_SECONDS_A_STEP", a_step)
    bench.fields = {"train.steps": 1}
    said = tmp_path / "said"
    said.write_text("a line\n")
    process = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ)
    assert bench.wait(process, said) == faults.Ended(status, ["a line"])
