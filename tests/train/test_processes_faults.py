"""Two processes of one job, on a (2, 2, 1) mesh: Ctrl-C, damage, divergence, and writers that fail.
"""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from of_jax.storage import run_directory
from tests.storage.test_damage import flip_the_middle
from tests.train.test_processes import STEPS, finish, nothing_is_left_running, same_bits, start

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]
assert nothing_is_left_running

MESH = ("mesh.data=2", "mesh.fsdp=2", "telemetry.level=off", "model.depth=1")
LONG = ("train.checkpoint_every=50", "train.checkpoint_log_base=2000", "train.eval_every=2000")
# After which a run goes on, where nothing newer is whole.
BEFORE = 4


@pytest.fixture(scope="module")
def whole(token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A run of two processes of two devices that nothing disturbed; checkpoints at 0, 1, 4, 12."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  finish(start(token_file, workdir, 2, 2, *MESH))
  return workdir


def resumed_after(workdir: Path) -> list[int]:
  return [one["after_step"] for one in
          run_directory.read_json(workdir / "env.json").get("resumed", ())]


def aside(workdir: Path) -> set[str]:
  return {path.name for path in (workdir / "checkpoints").iterdir() if "set_aside" in path.name}


@pytest.mark.parametrize("told, seed", [((0,), 0), ((1,), 1), ((0, 1), 2)])
def test_ctrl_c(token_file: Path, tmp_path: Path, whole: Path, told: tuple[int, ...], seed: int
                ) -> None:
  """To one or to both, as a terminal sends it: both save after the same step and end with 130, or
  75 where only the other was told; started again, they end in the same bits."""
  workdir, rng = tmp_path / "run", random.Random(seed)
  # Long enough that there is a step to stop after, however the machine is busy.
  job = start(token_file, workdir, 2, 2, *MESH, *LONG, steps=2000)
  wait_until(lambda: (workdir / "checkpoints" / "1").is_dir(), job)
  time.sleep(rng.uniform(0, 1))
  for process in told:
    job[process].send_signal(signal.SIGINT)
    time.sleep(rng.uniform(0, 0.2))
  ended = [process.communicate(timeout=200) for process in job]
  errors = [err for _, err in ended]
  assert not any("Traceback" in err for err in errors), errors
  for process, status in enumerate(one.returncode for one in job):
    assert status == (130 if process in told else 75), (process, status, errors)
  steps = {int(err.split("told to stop; saved step ")[1].split(" of ")[0]) for err in errors}
  assert len(steps) == 1 and not (workdir / "DONE").exists()
  step = steps.pop()
  names = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert str(step) in names and all(name.isdecimal() for name in names)
  same_to_there(token_file, workdir, tmp_path / "again", step)


def same_to_there(token_file: Path, stopped: Path, again: Path, step: int) -> None:
  """Goes on from that save for some steps, and from the checkpoint before it: the same lines."""
  shutil.copytree(stopped, again)
  shutil.rmtree(again / "checkpoints" / str(step))
  for workdir in (stopped, again):
    job = start(token_file, workdir, 2, 2, *MESH, *LONG, steps=2000)
    wait_until(lambda: lines_of(workdir) > step + 20, job)
    for process in job:
      process.send_signal(signal.SIGKILL)
    for process in job:
      process.communicate()
  ours, theirs = ((one / "metrics.jsonl").read_text().splitlines()[:step + 20]
                  for one in (stopped, again))
  assert ours == theirs and len(ours) == step + 20
  assert resumed_after(stopped) == [step]


def lines_of(workdir: Path) -> int:
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(there: Callable[[], bool], job: list[subprocess.Popen[str]]) -> None:
  deadline = time.monotonic() + 600
  while not there():
    assert time.monotonic() < deadline and all(process.poll() is None for process in job)
    time.sleep(0.01)


def emptied(folder: Path) -> None:
  shutil.rmtree(folder)
  folder.mkdir()


def cut(folder: Path) -> None:
  for path in folder.rglob("d/*"):
    path.write_bytes(path.read_bytes()[:10])


def copied(folder: Path) -> None:
  shutil.rmtree(folder)
  shutil.copytree(folder.with_name("4"), folder)


def changed_digit(path: Path) -> None:
  lines = path.read_text().splitlines(keepends=True)
  i = lines[5].index('"loss": ') + len('"loss": 4.')
  lines[5] = lines[5][:i] + str((int(lines[5][i]) + 1) % 10) + lines[5][i + 1:]
  path.write_text("".join(lines))


def chosen(path: Path, which: Callable[[list[str]], list[str]]) -> None:
  path.write_text("".join(which(path.read_text().splitlines(keepends=True))))


# What is done to the newest checkpoint, and what is set aside.
CHECKPOINT: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a bit": (flip_the_middle, {"12.set_aside"}), "cut": (cut, {"12.set_aside"}),
    "copied": (copied, {"12.set_aside"}), "empty": (emptied, {"12.set_aside"}),
    "a name": (lambda folder: folder.rename(folder.with_name("12 (copy)")),
               {"12 (copy).set_aside"})}
# What is done to the record, and after which step the run goes on then.
RECORD: dict[str, tuple[Callable[[Path], object], int]] = {
    "cut": (lambda path: chosen(path, lambda lines: lines[:6]), 4),
    "emptied": (lambda path: path.write_text(""), 0),
    "doubled": (lambda path: chosen(path, lambda lines: [*lines[:5], lines[4], *lines[5:]]), 4),
    "a digit": (changed_digit, 4),
    "a line missing": (lambda path: chosen(path, lambda lines: lines[:2] + lines[3:]), 1)}


def on_damage(token_file: Path, workdir: Path, whole: Path, step: int) -> None:
  (workdir / "DONE").unlink()
  errors = finish(start(token_file, workdir, 2, 2, *MESH))
  assert not any("Traceback" in err for err in errors), errors
  same_bits(workdir, whole)
  assert resumed_after(workdir) == [step]


@pytest.mark.parametrize("fault", CHECKPOINT)
def test_a_damaged_checkpoint(token_file: Path, tmp_path: Path, whole: Path, fault: str) -> None:
  damage, named = CHECKPOINT[fault]
  workdir = Path(shutil.copytree(whole, tmp_path / "run"))
  damage(workdir / "checkpoints" / "12")
  on_damage(token_file, workdir, whole, BEFORE)
  assert aside(workdir) == named


@pytest.mark.parametrize("fault", RECORD)
def test_a_damaged_record(token_file: Path, tmp_path: Path, whole: Path, fault: str) -> None:
  damage, step = RECORD[fault]
  workdir = Path(shutil.copytree(whole, tmp_path / "run"))
  damage(workdir / "metrics.jsonl")
  on_damage(token_file, workdir, whole, step)
  assert (workdir / "metrics.jsonl.set_aside").exists() and not aside(workdir)


def test_divergence_that_was_saved_and_not_finished(token_file: Path, tmp_path: Path) -> None:
  """Killed between its last save and DONE: it ends there, without a step more."""
  fields = (*MESH, "optim.learning_rate=1e30")
  workdir = tmp_path / "run"
  finish(start(token_file, workdir, 2, 2, *fields))
  record = (workdir / "metrics.jsonl").read_bytes()
  assert json.loads(record.splitlines()[-1])["step"] < STEPS
  (workdir / "DONE").unlink()
  finish(start(token_file, workdir, 2, 2, *fields))
  assert (workdir / "metrics.jsonl").read_bytes() == record and (workdir / "DONE").exists()


def test_tensorboard_that_cannot_be_written(token_file: Path, tmp_path: Path, whole: Path) -> None:
  """TensorBoard, whose file cannot be written, is dropped in one line, by process 0 alone."""
  workdir, fields = tmp_path / "run", (*MESH, "train.tensorboard=true")
  job = start(token_file, workdir, 2, 2, *fields, before="import os, errno;"
              "import tensorboardX.event_file_writer as w;"
              "w.EventsWriter.write_event = lambda *_: (_ for _ in ()).throw("
              "OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)));")
  said = [process.communicate(timeout=600) for process in job]
  assert [process.returncode for process in job] == [0, 0], said
  assert [text.count("TensorBoard: dropped") for text in ("".join(one) for one in said)] == [1, 0]
  same_bits(workdir, whole)


def test_a_full_disk(token_file: Path, tmp_path: Path, whole: Path) -> None:
  """A save that process 0 cannot write ends both with a line."""
  workdir = tmp_path / "run"
  job = start(token_file, workdir, 2, 2, *MESH, before="import resource, sys;"
              "from of_jax.storage.checkpoint import Checkpoints as C; save = C.save;"
              "C.save = lambda self, state, step, kept=None: ("
              "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, -1)) if step == 4 and "
              "sys.argv[-1].endswith('=0') else None, save(self, state, step, kept))[1];")
  said = [process.communicate(timeout=300) for process in job]
  assert [process.returncode for process in job] == [1, 1], said
  errors = [err.splitlines() for _, err in said]
  assert errors[0][-1].startswith("error: ") and "File too large" in errors[0][-1], said
  assert errors[1][-1] == f"process 1 of 2: process 0 ended: {errors[0][-1]}", said
  assert not any("Traceback" in err or "Fatal" in err for _, err in said), said
  finish(start(token_file, workdir, 2, 2, *MESH))
  same_bits(workdir, whole)


@pytest.mark.parametrize("case", ("strict_resume", "corpus", "empty workdir", "new workdir"))
def test_one_process_has_another_command(token_file: Path, tmp_path: Path, whole: Path, case: str
                                         ) -> None:
  """Both end with status 1 and the reason, in a line each: no launcher starts them again."""
  workdir = tmp_path / "run"
  if case != "new workdir":
    shutil.copytree(whole, workdir)
    (workdir / "DONE").unlink()
  flip = workdir / "checkpoints" / "12"
  last = {"strict_resume": "--strict_resume",
          "corpus": f"--config.data.corpus=tokens:{tmp_path}/nowhere.npy"}.get(
              case, f"--workdir={tmp_path}/other")
  if case == "strict_resume":
    flip_the_middle(flip)
  errors = finish(start(token_file, workdir, 2, 2, *MESH, last=(last,)), status=1)
  reason = {"strict_resume": "--strict_resume: process 1 has another", "corpus": "nowhere.npy",
            "empty workdir": "checkpoints in the run directory: process 1 has another",
            "new workdir": "the run directory: process 1 has another"}[case]
  for error in errors:
    lines = [line for line in error.splitlines() if "error: " in line]
    assert len(lines) == 1 and reason in lines[0], errors
    assert "Traceback" not in error and "Fatal" not in error and "terminate" not in error, errors
  if case == "strict_resume":
    assert not aside(workdir)


@pytest.mark.parametrize("told", (0, 1))
def test_ctrl_c_to_one_before_there_is_anything_to_save(token_file: Path, tmp_path: Path, told: int
                                                        ) -> None:
  """The other ends with its line, and not by JAX's missing it."""
  workdir = tmp_path / "run"
  job = start(token_file, workdir, 2, 2, *MESH, "model.depth=3", "model.width=48",
              f"train.seed={told + 100}")
  wait_until(lambda: (workdir / "config.json").is_file(), job)
  job[told].send_signal(signal.SIGINT)
  errors = [process.communicate(timeout=100)[1] for process in job]
  assert [process.returncode for process in job] == [130, 130], errors
  assert errors[told].splitlines()[-1] == "interrupted; the same command resumes"
  assert errors[1 - told].splitlines()[-1] == (
      f"process {1 - told} of 2: process {told} ended: interrupted; the same command resumes")
  assert not any("Fatal" in error or "unhealthy" in error for error in errors), errors


def test_word_before_the_first_step_of_a_resumed_job(token_file: Path, tmp_path: Path) -> None:
  """SIGTERM between restoring and the first step: the job stops soon, though it resumes at 1001."""
  workdir = tmp_path / "run"
  fields = (*MESH, "train.checkpoint_every=1000", "train.eval_every=4000")
  job = start(token_file, workdir, 2, 2, *fields, steps=4000)
  wait_until(lambda: (workdir / "checkpoints" / "1000").is_dir(), job)
  for process in job:
    process.kill()
    process.communicate()
  before = "from of_jax.train import startup; import os, signal; begin = startup.begin; " \
      "startup.begin = lambda *a: (begin(*a), os.kill(os.getpid(), signal.SIGTERM))[0]; "
  job = start(token_file, workdir, 2, 2, *fields, steps=4000, before=before)
  errors = finish(job, status=75)
  steps = {int(error.split("told to stop; saved step ")[1].split(" of ")[0]) for error in errors}
  assert len(steps) == 1 and 1000 < steps.pop() < 1100, errors
