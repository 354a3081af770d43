"""Writers: those that a run can do without are dropped, and what it needs is one line."""

import errno
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.storage import run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import loop, optional, progress, train, writers

pytestmark = pytest.mark.xdist_group("writers")

MakeConfig = Callable[..., Config]
FIELDS: dict[str, Any] = {
    "model__width": 16, "model__depth": 1, "model__heads": 2, "train__steps": 6,
    "train__eval_every": 3, "train__checkpoint_every": 2, "train__checkpoint_log_base": 6,
    "data__eval_sequences": 8, "telemetry__level": "off", "train__tensorboard": True}


def run(config: Config, workdir: Path) -> list[str]:
  lines: list[str] = []
  train(config, workdir, lines.append)
  return [line.replace(str(workdir), "RUN") for line in lines]


@pytest.fixture
def whole(make_config: MakeConfig, tmp_path: Path) -> tuple[Config, bytes]:
  config = make_config(**FIELDS)
  run(config, tmp_path / "whole")
  return config, (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def full(*_: object) -> None:
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_optional_writers_are_dropped(whole: tuple[Config, bytes], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
  """On a full disk, and where one hangs: the record is that of a run that nothing happened to."""
  config, record = whole
  monkeypatch.setattr(optional, "_PATIENCE", 0.3)
  stuck = threading.Event()
  for name, write, reason in (
      ("full", full, "No space left on device"),
      ("stuck", lambda *_: stuck.wait(30), "it did nothing for 0.3 s")):
    with monkeypatch.context() as patched:
      patched.setattr(writers.TensorBoard, "write", write)
      begun = time.monotonic()
      lines = run(config, tmp_path / name)
    assert time.monotonic() - begun < 20
    assert [line for line in lines if "dropped" in line] == [
        f"RUN: TensorBoard: dropped, the run goes on without it: {reason}"]
    assert (tmp_path / name / "metrics.jsonl").read_bytes() == record
    assert (tmp_path / name / "timing.jsonl").read_bytes().count(b"\n") == 6
  stuck.set()


def test_a_clock_that_is_set_back(whole: tuple[Config, bytes], tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
  now, calls = time.time, iter(range(10 ** 9))
  monkeypatch.setattr(time, "time", lambda: now() - (400 * 86400 if next(calls) > 20 else 0))
  config, record = whole
  lines = run(config, tmp_path / "run")
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == record
  assert not any("dropped" in line for line in lines)


@pytest.mark.parametrize("number", [
    errno.ENOSPC, errno.EIO, *(pytest.param(number, marks=pytest.mark.slow) for number in (
        errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE))])
def test_a_record_that_cannot_be_written_is_one_line(
    whole: tuple[Config, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
  config, record = whole
  workdir, flush = tmp_path / "run", writers.JsonLines.flush
  flushed: list[int] = []

  class Failing:
    def __init__(self, file: Any):
      self._file = file

    def __getattr__(self, name: str) -> Any:
      return getattr(self._file, name)

    def flush(self) -> None:
      raise OSError(number, os.strerror(number))

  def failing(self: writers.JsonLines) -> None:
    if self._path.name == run_directory.METRICS:
      flushed.append(1)
      if len(flushed) == 3:
        self._file = Failing(self._file)  # type: ignore[assignment]
    flush(self)

  with monkeypatch.context() as patched:
    patched.setattr(writers.JsonLines, "flush", failing)
    with pytest.raises(UserError) as error:
      run(config, workdir)
  text = str(error.value).replace(str(workdir), "RUN")
  assert text == (f"RUN: stopped: RUN/metrics.jsonl: {os.strerror(number)}; saved up to step 2, "
                  "from which the same command goes on")
  run(config, workdir)
  assert (workdir / "metrics.jsonl").read_bytes() == record


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("is_made_again", (False, True))
def test_a_folder_that_is_moved_away(whole: tuple[Config, bytes], tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch, is_made_again: bool) -> None:
  """Also where somebody, or a save under way, makes it again: no run is split over two folders."""
  config, record = whole
  workdir, away, feed = tmp_path / "run", tmp_path / "away", loop.Feed.train

  def moving(self: loop.Feed, step: int) -> Any:
    if step == 3:
      workdir.rename(away)
      if is_made_again:
        (workdir / "checkpoints").mkdir(parents=True)
    return feed(self, step)

  with monkeypatch.context() as patched:
    patched.setattr(loop.Feed, "train", moving)
    with pytest.raises(UserError, match="stopped: .*No such file or directory"):
      run(config, workdir)
  assert not (workdir / "DONE").exists()
  shutil.rmtree(workdir, ignore_errors=True)
  away.rename(workdir)
  run(config, workdir)
  assert (workdir / "metrics.jsonl").read_bytes() == record


def test_a_record_that_was_replaced(tmp_path: Path) -> None:
  """By a copy, as an editor saves: what comes next would be written to nobody's file."""
  path = tmp_path / "metrics.jsonl"
  lines = writers.JsonLines(path)
  lines.write({"step": 1})
  lines.flush()
  shutil.copyfile(path, tmp_path / "copy")
  (tmp_path / "copy").rename(path)
  lines.write({"step": 2})
  with pytest.raises(OSError, match="another file was put in its place"):
    lines.flush()
  lines.close()


def test_a_checkpoint_that_cannot_be_written(
    tmp_path: Path, small_files: Callable[[int], None], capfd: pytest.CaptureFixture[str]) -> None:
  """TensorStore's words on a disk become an OSError; a folder that was removed is not made anew."""
  import numpy as np
  rng = np.random.default_rng(0)
  state = {"params": {"a": rng.random(100_000)}, "opt_state": {"b": rng.random(9)}}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state, 0)
  checkpoints.wait()
  small_files(50_000)
  with pytest.raises(OSError) as error:
    checkpoints.save(state, 1)
    checkpoints.wait()
  assert error.value.errno == errno.EFBIG
  assert error.value.filename == str(tmp_path / "checkpoints")
  assert checkpoints.steps == [0]
  shutil.rmtree(tmp_path / "checkpoints")
  with pytest.raises(FileNotFoundError):
    checkpoints.save(state, 2)
  assert "Traceback" not in capfd.readouterr().err


def test_a_clock_that_jumps_within_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capfd: pytest.CaptureFixture[str]) -> None:
  """Beyond all that Orbax waits for: it is saved, or that is said in words, and the next one is."""
  import numpy as np
  state = {"params": {"a": np.arange(9)}, "opt_state": {"b": np.ones(9)}}
  checkpoints, now, failed = Checkpoints(tmp_path), time.time, 0
  for step, at in enumerate((0, 1, 2, 4, 7, 12, 20, 30, 45)):
    calls = iter(range(10 ** 9))
    with monkeypatch.context() as patched:
      patched.setattr(time, "time", lambda: now() + (400 * 86400 if next(calls) >= at else 0))
      try:
        checkpoints.save(state, step)
        checkpoints.wait()
      except OSError as error:
        failed += 1
        assert error.strerror and "clock" in error.strerror, error
        assert error.filename == str(tmp_path / "checkpoints") and step not in checkpoints.steps
        checkpoints.save(state, step)
        checkpoints.wait()
    assert checkpoints.steps == list(range(step + 1))
  assert failed, "the clock never jumped where Orbax waits"
  err = capfd.readouterr().err
  assert "Traceback" not in err and "Warning" not in err, err


def test_a_terminal_that_is_gone(monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
  def gone(*_: object, **__: object) -> None:
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")

  with progress.TrainingProgress("run", 0, 3) as shown:
    with monkeypatch.context() as patched:
      patched.setattr(progress, "print", gone, raising=False)
      shown.update(3, 2.0, 5.0)
    shown.update(3, 2.0, 5.0)
    shown.evaluated(3, {"loss": 2.0})
  assert capsys.readouterr().out == "run: compiling, then 3 steps\n"


def test_temporary_names_are_of_one_process_alone(tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
  """Names differ in containers of equal process ids and hosts; a failed write leaves nothing."""
  monkeypatch.setattr(os, "getpid", lambda: 7)
  assert len({run_directory.unique() for _ in range(1000)}) == 1000
  path = tmp_path / ("x" * 200 + ".json")
  run_directory.replace_text(path, "whole")
  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left") as error:
    run_directory.replace_text(path, "half")
  assert error.value.filename == str(path)
  assert path.read_text() == "whole" and os.listdir(tmp_path) == [path.name]
