"""SIGINT and SIGTERM, as binaries take them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from of_jax.config import Config
from of_jax.errors import Interrupted, Preempted
from of_jax.train import train
from of_jax.train.distributed import Interruption

ROOT = Path(__file__).parents[2]
# A binary that is busy as its argument says: with nothing to save, or with steps that take long.
BINARY = """
import signal, sys, threading, time
from of_jax.commands import cli
from of_jax import signals
from of_jax.errors import Interrupted, Preempted

BUSY = sys.argv.pop()
signals._SECONDS = 0.2


class Steps:
  told = 0
  def stop(self, number):
    self.told = number
  def busy_with(self):
    return "step 3"


def main():
  steps = Steps()
  if BUSY != "nothing":
    signals.current().asks(steps)
  print("ready", flush=True)
  while BUSY == "stuck" or BUSY == "nothing" or not steps.told:
    time.sleep(0.01)
  time.sleep(1)
  raise (Interrupted if steps.told == signal.SIGINT else Preempted)("told to stop; saved step 3")


cli.run(main)
"""


def ended(busy: str, *numbers: int) -> tuple[int, list[str], float]:
  """Starts the binary, sends it signals, and returns its status, what it said, and the seconds."""
  process = subprocess.Popen([sys.executable, "-c", BINARY, busy], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert process.stdout is not None
  assert process.stdout.readline() == "ready\n"
  begun = time.monotonic()
  for number in numbers:
    process.send_signal(number)
    time.sleep(0.3)
  try:
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  assert out == "", out
  return process.returncode, err.splitlines(), time.monotonic() - begun


@pytest.mark.parametrize("busy, numbers, status, said", [
    ("nothing", (signal.SIGINT,), 130, ["interrupted; the same command resumes"]),
    ("nothing", (signal.SIGTERM,), 75, [
        "told to stop before the first step; nothing new to save; the same command resumes"]),
    ("steps", (signal.SIGINT,), 130, [
        "stopping: waits for step 3; Ctrl-C again ends at once",
        "told to stop; saved step 3; the same command resumes"]),
    ("steps", (signal.SIGTERM,), 75, [
        "stopping: waits for step 3; Ctrl-C ends at once",
        "told to stop; saved step 3; the same command resumes"]),
    ("stuck", (signal.SIGINT, signal.SIGINT), 130, [
        "stopping: waits for step 3; Ctrl-C again ends at once",
        "interrupted again: ended at once; the same command resumes"])])
def test_a_binary_ends_with_a_line(busy: str, numbers: tuple[int, ...], status: int,
                                   said: list[str]) -> None:
  found = ended(busy, *numbers)
  assert found[:2] == (status, said) and found[2] < 30


def test_ctrl_c_while_libraries_are_imported() -> None:
  """It ends the process without a traceback, once `python -m` has come to the package."""
  program = ("import sys; sys.argv = ['-m']; import experiments, os, time; "
             "os.kill(os.getpid(), 2); time.sleep(30)")
  found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, timeout=60,
                         capture_output=True)
  assert (found.returncode, found.stderr) == (-signal.SIGINT, "")


def test_preempted_is_not_swallowed() -> None:
  """`except Exception` of a user's metric lets it through; a Ctrl-C is Python's own too."""
  assert not issubclass(Preempted, Exception)
  assert issubclass(Interrupted, KeyboardInterrupt) and Interrupted.status == 130
  with pytest.raises(Preempted):
    with Interruption():
      try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
      except Exception:
        pytest.fail("swallowed")


def test_ctrl_c_saves_where_the_package_is_only_used(make_config: Callable[..., Config],
                                                     tmp_path: Path) -> None:
  config = make_config(train__steps=6, model__depth=1, telemetry__level="off")
  asked: list[int] = []
  stops_at = Interruption.stops_at

  def press(self: Interruption, step: int) -> bool:
    asked.append(step)
    if step == 3:
      # The second time Python's own exception comes.
      stops_at(self, step)
      os.kill(os.getpid(), signal.SIGINT)
    return stops_at(self, step)

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(Interruption, "stops_at", press)
    with pytest.raises(Interrupted, match="saved step 3 of 6"):
      train(config, tmp_path / "run", lambda line: None)
  assert asked == [1, 2, 3] and (tmp_path / "run" / "checkpoints" / "3").is_dir()
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
