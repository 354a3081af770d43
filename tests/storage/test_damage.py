"""Damaged checkpoints and records: named, set aside, and the run ends in the bits of a whole one.
"""

import dataclasses
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.analysis import replay, runs
from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.storage import checkpoint, identity, record, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.sweep.trainer import train_together
from of_jax.train import train

pytestmark = pytest.mark.xdist_group("damage")

MakeConfig = Callable[..., Config]
Fault = Callable[[Path], object]
FIELDS: dict[str, Any] = {
    "model__width": 16, "model__depth": 1, "model__heads": 2, "train__steps": 12,
    "train__eval_every": 4, "train__checkpoint_every": 4, "train__checkpoint_log_base": 12,
    "data__eval_sequences": 8, "telemetry__sites": "final", "telemetry__metrics": "kurtosis"}


@dataclasses.dataclass(frozen=True)
class Study:
  """A run that ended, with checkpoints at 0, 1, 4, 8 and 12, and copies of it that did not."""

  config: Config
  whole: Path
  folder: Path

  def stopped(self) -> Path:
    """Copies the run as it was after the checkpoint at 8, with lines that it logged after it."""
    workdir = self.folder / "run"
    shutil.copytree(self.whole, workdir)
    (workdir / "DONE").unlink()
    shutil.rmtree(workdir / "checkpoints" / "12")
    return workdir

  def goes_on(self, workdir: Path, strict: bool = False) -> list[str]:
    """Resumes the run; it must end in the bits of the whole one. Returns what was said."""
    lines: list[str] = []
    train(self.config, workdir, lines.append, strict_resume=strict)
    assert all("\n" not in line for line in lines)
    assert (workdir / "metrics.jsonl").read_bytes() == (self.whole / "metrics.jsonl").read_bytes()
    ours, theirs = (leaves(run, 12) for run in (workdir, self.whole))
    for mine, other in zip(ours, theirs, strict=True):
      np.testing.assert_array_equal(mine, other)
    return [line.replace(str(workdir), "RUN") for line in lines]


def leaves(workdir: Path, step: int) -> list[np.ndarray]:
  with Checkpoints(workdir, reading=True) as checkpoints:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.load_host(step))]


# The folder of the run that all tests of this file copy.
_WHOLE: dict[str, Path] = {}


@pytest.fixture
def study(make_config: MakeConfig, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
          ) -> Study:
  config = make_config(**FIELDS)
  if "run" not in _WHOLE:
    _WHOLE["run"] = tmp_path_factory.mktemp("damage") / "whole"
    train(config, _WHOLE["run"], lambda line: None)
  return Study(config, _WHOLE["run"], tmp_path)


def some_slow(faults: Iterable[str], *fast: str) -> list[Any]:
  """Marks all but a few as slow."""
  return [name if name in fast else pytest.param(name, marks=pytest.mark.slow)
          for name in faults]


def at(workdir: Path, step: int | str) -> Path:
  return workdir / "checkpoints" / str(step)


def replaced_by_a_file(folder: Path) -> None:
  shutil.rmtree(folder)
  folder.write_text("x")


def cut(folder: Path, size: int) -> None:
  for path in folder.rglob("d/*"):
    path.write_bytes(path.read_bytes()[:size])


def flip_the_middle(folder: Path) -> None:
  """Flips bits of the largest data file, of whichever process: of numbers."""
  path = max(folder.rglob("ocdbt.process_*/d/*"), key=lambda path: path.stat().st_size)
  raw = bytearray(path.read_bytes())
  # Half of the bytes are of trees that later ones replace.
  for i in range(len(raw) // 8, len(raw), len(raw) // 16):
    raw[i] ^= 16
  path.write_bytes(bytes(raw))


def edited(folder: Path, change: Callable[[dict[str, Any]], object], seal: bool = False) -> None:
  """Changes what a checkpoint keeps beside its arrays; `seal` makes its sum fit again."""
  path = folder / "_CHECKPOINT_METADATA"
  whole = json.loads(path.read_text())
  kept = whole["custom_metadata"]
  change(kept)
  if seal:
    kept["sum"] = identity.sealed(kept["step"], {
        name: value for name, value in kept.items() if name != "sum"}, None)["sum"]
  path.write_text(json.dumps(whole))


# What is done to a run that goes on after step 8, what is set aside, and after which step it goes
# on then.
DAMAGE: dict[str, tuple[Fault, str, int]] = {
    "copied": (lambda run: shutil.copytree(at(run, 4), at(run, 9)), "9", 8),
    "empty": (lambda run: at(run, 9).mkdir(), "9", 8),
    "a file": (lambda run: at(run, 9).write_text("x"), "9", 8),
    "a copy's name": (lambda run: shutil.copytree(at(run, 8), at(run, "8 (copy)")), "8 (copy)", 8),
    "zeros before": (lambda run: at(run, 8).rename(at(run, "008")), "008", 4),
    "no opt_state": (lambda run: shutil.rmtree(at(run, 8) / "opt_state"), "8", 4),
    "no digest": (lambda run: shutil.rmtree(at(run, 8) / "digest"), "8", 4),
    "no metadata": (lambda run: (at(run, 8) / "_CHECKPOINT_METADATA").unlink(), "8", 4),
    "other metadata": (lambda run: (at(run, 8) / "_CHECKPOINT_METADATA").write_text("[]"), "8", 4),
    "metadata of another step": (lambda run: shutil.copyfile(
        at(run, 4) / "_CHECKPOINT_METADATA", at(run, 8) / "_CHECKPOINT_METADATA"), "8", 4),
    "a digit of metadata": (lambda run: edited(
        at(run, 8), lambda kept: kept["divergence"].update(moved=1)), "8", 4),
    "a letter of metadata": (lambda run: edited(
        at(run, 8), lambda kept: kept.update(metrias=kept.pop("metrics"))), "8", 4),
    "diverged": (lambda run: edited(at(run, 8), lambda kept: kept.update(diverged=True)), "8", 4),
    "metadata of another run": (lambda run: edited(
        at(run, 8), lambda kept: kept["config"]["train"].update(seed=5), seal=True), "8", 4),
    "arrays of another run": (lambda run: edited(
        at(run, 8), lambda kept: kept["config"]["train"].pop("seed"), seal=True), "8", 4),
    "params a file": (lambda run: replaced_by_a_file(at(run, 8) / "params"), "8", 4),
    "cut to 10 bytes": (lambda run: cut(at(run, 8) / "params", 10), "8", 4),
    "bits of parameters": (lambda run: flip_the_middle(at(run, 8) / "params"), "8", 4),
    "bits of moments": (lambda run: flip_the_middle(at(run, 8) / "opt_state"), "8", 4),
}


@pytest.mark.parametrize("fault", some_slow(
    DAMAGE, "copied", "a copy's name", "no opt_state", "cut to 10 bytes", "bits of moments",
    "a digit of metadata", "metadata of another run", "arrays of another run"))
def test_a_damaged_checkpoint_is_set_aside(study: Study, fault: str,
                                           capfd: pytest.CaptureFixture[str]) -> None:
  damage, named, step = DAMAGE[fault]
  workdir = study.stopped()
  damage(workdir)
  before = {path.name for path in at(workdir, 0).parent.iterdir()}
  with pytest.raises(UserError, match="RUN|run.*--strict_resume does not go on from an older one"):
    study.goes_on(workdir, strict=True)
  assert before == {path.name for path in at(workdir, 0).parent.iterdir()}
  lines = study.goes_on(workdir)
  told = [line for line in lines if "damaged" in line]
  assert len(told) == 1 and told[0].startswith(f"RUN: checkpoint {named} is damaged: ")
  assert told[0].endswith(f"; set aside as {named}.set_aside")
  assert at(workdir, f"{named}.set_aside").exists()
  assert f"RUN: resumes after step {step} of 12" in lines
  # Readers that fail leave no page behind.
  assert "Traceback" not in capfd.readouterr().err


def changed_digit(path: Path) -> None:
  lines = path.read_text().splitlines(keepends=True)
  i = lines[5].index('"loss": ') + len('"loss": 4.')
  lines[5] = lines[5][:i] + str((int(lines[5][i]) + 1) % 10) + lines[5][i + 1:]
  path.write_text("".join(lines))


def lines_of(path: Path, *which: int) -> None:
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[i] for i in which))


# What is done to metrics.jsonl, and after which step the run goes on then. The lines of steps 1 to
# 4 are the first five.
RECORD: dict[str, tuple[Callable[[Path], object], int]] = {
    "cut to 5 lines": (lambda path: lines_of(path, *range(5)), 4),
    "empty": (lambda path: path.write_text(""), 0),
    "gone": (lambda path: path.unlink(), 0),
    "no line of step 2": (lambda path: lines_of(path, 0, *range(2, 15)), 1),
    "one twice": (lambda path: lines_of(path, 0, *range(15)), 1),
    "two the other way round": (lambda path: lines_of(path, 0, 1, 3, 2, *range(4, 15)), 1),
    "a digit": (changed_digit, 4),
    "half a line at the end": (lambda path: path.write_bytes(path.read_bytes()[:-30]), 8),
    "half a line": (lambda path: path.write_bytes(path.read_bytes()[:700]), 1),
    "noise": (lambda path: path.write_bytes(random.Random(0).randbytes(3000)), 0),
}


@pytest.mark.parametrize("fault", some_slow(RECORD, "cut to 5 lines", "one twice", "a digit"))
def test_a_damaged_record_is_computed_again(study: Study, fault: str) -> None:
  damage, step = RECORD[fault]
  workdir = study.stopped()
  path = workdir / "metrics.jsonl"
  damage(path)
  found = path.read_bytes() if path.exists() else None
  lines = study.goes_on(workdir)
  assert f"RUN: resumes after step {step} of 12" in lines
  told = [line for line in lines if "is not what it was" in line]
  assert len(told) == (step < 8)
  if told:
    assert told[0].startswith("RUN: metrics.jsonl is not what it was at checkpoint 8")
    assert told[0].endswith(f"; what follows step {step} is computed again")
    aside = workdir / "metrics.jsonl.set_aside"
    assert (aside.read_bytes() if aside.exists() else None) == found


def none_whole(workdir: Path) -> None:
  for step in (0, 1, 4, 8):
    shutil.rmtree(at(workdir, step) / "params")


def all_aside(workdir: Path) -> None:
  for step in (0, 1, 4, 8):
    at(workdir, step).rename(at(workdir, f"{step}.set_aside"))


def no_start(workdir: Path) -> None:
  shutil.rmtree(at(workdir, 0))
  (workdir / "metrics.jsonl").write_text("")


REFUSED: dict[str, tuple[Fault, str]] = {
    "none whole": (none_whole, "no checkpoint to go on from: checkpoint 8 is damaged: it has no"),
    "all set aside": (all_aside, "no checkpoint to go on from: all were set aside"),
    "no record": (no_start, "metrics.jsonl is not what it was at checkpoint 8"),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "goes to step 12, and"),
    "checkpoints a file": (lambda run: replaced_by_a_file(run / "checkpoints"), "is a file, and"),
    "newer": (lambda run: schema(run, 3), "schema 3: this version reads run directories of schema"),
    "no number": (lambda run: schema(run, "x"), "schema x: this version reads"),
}


def schema(workdir: Path, version: Any) -> None:
  path = workdir / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "schema": version}))


@pytest.mark.parametrize("fault", REFUSED)
def test_a_run_never_starts_again_in_silence(study: Study, fault: str) -> None:
  damage, message = REFUSED[fault]
  workdir = study.stopped()
  damage(workdir)
  before = sorted((str(path), path.stat().st_mtime_ns) for path in workdir.rglob("*"))
  with pytest.raises(UserError, match=message) as error:
    study.goes_on(workdir)
  assert "\n" not in str(error.value) and len(str(error.value)) < 700
  assert before == sorted((str(path), path.stat().st_mtime_ns) for path in workdir.rglob("*"))


def test_done_is_held_against_the_run(study: Study) -> None:
  workdir = study.stopped()
  (workdir / "DONE").touch()
  with pytest.raises(UserError, match="marked DONE, but its newest checkpoint is of step 8 of 12"):
    study.goes_on(workdir, strict=True)
  assert (workdir / "DONE").exists()
  lines_of(workdir / "metrics.jsonl", *range(10))
  lines = study.goes_on(workdir)
  assert any("is marked DONE, but metrics.jsonl goes to step" in line for line in lines)
  assert "RUN: finished before, nothing to do" in study.goes_on(workdir)
  record_path = workdir / "metrics.jsonl"
  record_path.write_text(record_path.read_text().replace('"loss": 4.', '"loss": 3.', 1))
  with pytest.raises(UserError, match="metrics.jsonl: is not what it was at checkpoint 12"):
    runs.load_run(workdir)
  lines = study.goes_on(workdir)
  assert "metrics.jsonl is not what it was at checkpoint 12" in lines[0]
  assert runs.load_run(workdir).finished
  # Checkpoints may be removed of a run that is over.
  shutil.rmtree(workdir / "checkpoints")
  lines = []
  train(study.config, workdir, lines.append)
  assert lines == [f"{workdir}: finished before, nothing to do"]
  (workdir / "DONE").unlink()
  (workdir / "DONE").mkdir()
  with pytest.raises(UserError, match="DONE: is no file"):
    train(study.config, workdir, lines.append)


def test_a_run_is_measured_by_its_own_checkpoints(study: Study) -> None:
  workdir = study.stopped()
  edited(at(workdir, 8), lambda kept: kept["config"]["train"].update(seed=5), seal=True)
  with pytest.raises(UserError, match="of step 8 is damaged: .*another config .train.seed 5 there"):
    replay.restore(workdir, 8)
  assert replay.restore(workdir, 4).is_verified


@pytest.mark.parametrize("name", ("lr[1]", "a*", "a?", "a\\b"))
def test_a_folder_that_is_a_pattern_is_refused(study: Study, name: str) -> None:
  workdir = study.folder / name
  with pytest.raises(UserError, match="has .* in it, which Orbax takes for a pattern"):
    train(study.config, workdir, print)
  assert not workdir.exists()


def test_other_settings_of_jax_are_refused(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
  workdir = study.stopped()
  path = workdir / "env.json"
  env = json.loads(path.read_text())
  assert env["jax_settings"]["jax_enable_x64"] is False
  env["jax_settings"]["jax_default_matmul_precision"] = "float32"
  env["mesh"]["data"] = 2
  path.write_text(json.dumps(env))
  with pytest.raises(UserError, match="began with jax_default_matmul_precision=float32"):
    study.goes_on(workdir)
  env["jax_settings"]["jax_default_matmul_precision"] = None
  path.write_text(json.dumps(env))
  assert any("began on the mesh" in line for line in study.goes_on(workdir))


def test_killed_before_the_first_checkpoint_it_starts_again(study: Study) -> None:
  """With a line of the first step, and what Orbax leaves of a save that was not ended."""
  workdir = study.stopped()
  for step in (1, 4, 8):
    shutil.rmtree(at(workdir, step))
  at(workdir, 0).rename(at(workdir, "0.orbax-checkpoint-tmp"))
  lines_of(workdir / "metrics.jsonl", 0)
  assert not any("resumes" in line for line in study.goes_on(workdir))
  assert not at(workdir, "0.orbax-checkpoint-tmp").exists()


def test_a_run_that_diverged_is_over_when_it_is_resumed(make_config: MakeConfig, tmp_path: Path
                                                        ) -> None:
  """Killed between its last save and DONE, alone and as a member beside one that goes on."""
  diverges = make_config(**{**FIELDS, "optim__learning_rate": 1e30})
  calm = make_config(**FIELDS)
  train(diverges, tmp_path / "whole", lambda line: None)
  last = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
  step = json.loads(last.splitlines()[-1])["step"]
  assert step < 12 and json.loads(last.splitlines()[-1])["split"] == "eval"
  for name in ("alone", "member"):
    shutil.copytree(tmp_path / "whole", tmp_path / name)
    (tmp_path / name / "DONE").unlink()
  lines: list[str] = []
  train(diverges, tmp_path / "alone", lines.append)
  assert any(f"stopped after step {step}: the loss is not finite" in line for line in lines)
  train_together({tmp_path / "member": diverges, tmp_path / "calm": calm}, lambda line: None)
  for name in ("alone", "member"):
    assert (tmp_path / name / "metrics.jsonl").read_bytes() == last
    assert (tmp_path / name / "DONE").exists()
  assert record.last_step(tmp_path / "calm" / "metrics.jsonl") == 12


def test_members_of_which_one_is_damaged(study: Study, make_config: MakeConfig, tmp_path: Path
                                         ) -> None:
  """It goes on apart, and all end in the bits of their single runs."""
  workdir, lines = study.stopped(), list[str]()
  other = make_config(**{**FIELDS, "train__seed": 3})
  train(other, tmp_path / "other", lambda line: None)
  shutil.copytree(tmp_path / "other", tmp_path / "member")
  (tmp_path / "member" / "DONE").unlink()
  for step in (8, 12):
    shutil.rmtree(at(tmp_path / "member", step))
  flip_the_middle(at(workdir, 8) / "opt_state")
  train_together({workdir: study.config, tmp_path / "member": other}, lines.append)
  assert "2 runs: resumes after step 4 of 12" in lines
  for ours, theirs in ((workdir, study.whole), (tmp_path / "member", tmp_path / "other")):
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    for mine, whole in zip(leaves(ours, 12), leaves(theirs, 12), strict=True):
      np.testing.assert_array_equal(mine, whole)


@pytest.mark.slow
def test_saves_leave_no_thread_and_no_descriptor(tmp_path: Path) -> None:
  """Over 200 saves in four runs of one process."""
  def held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()

  seen = []
  state = {"params": {"a": np.ones(3, np.float32)}, "opt_state": {"b": np.ones(2, np.float32)}}
  for run in range(4):
    with Checkpoints(tmp_path / str(run)) as checkpoints:
      for step in range(50):
        checkpoints.save(state, step)
      checkpoints.wait()
      seen.append(held())
    seen.append(held())
  (descriptors, threads), last = seen[1], seen[-1]
  # The pools that JAX and asyncio keep are there after the first run.
  assert max(count for count, _ in seen) <= descriptors + 12
  assert last[0] <= descriptors + 2 and last[1] <= threads + 2, seen


def test_a_record_that_is_cut_while_a_run_writes_it(tmp_path: Path) -> None:
  path = tmp_path / run_directory.METRICS
  kept = record.Record(path)
  assert kept.up_to_here() == record.empty()
  path.write_text("one\n")
  assert record.matches(path, kept.up_to_here())
  path.write_text("")
  with pytest.raises(UserError, match="metrics.jsonl: was cut to fewer than 4 bytes while"):
    kept.up_to_here()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_file_of_a_checkpoint(study: Study, seed: int) -> None:
  """A bit flipped, a half, and nothing, of every file: the bits are those of the whole run."""
  rng = random.Random(seed)
  names = [path.relative_to(at(study.whole, 8)) for path in at(study.whole, 8).rglob("*")
           if path.is_file() and path.stat().st_size]
  for name in names:
    for fault in ("flip", "half", "gone"):
      workdir = study.stopped()
      path = at(workdir, 8) / name
      raw = bytearray(path.read_bytes())
      raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
      if fault == "gone":
        path.unlink()
      else:
        path.write_bytes(bytes(raw) if fault == "flip" else bytes(raw[:len(raw) // 2]))
      study.goes_on(workdir)
      shutil.rmtree(workdir)


def test_a_process_saves_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Also of two runs: Orbax counts saves for the process, and mixes up those that overlap."""
  begun: list[str] = []

  class Saving:
    def __init__(self, path: Any, *_: Any, **__: Any) -> None:
      self.name = f"{path.parent.parent.name} {path.name}"
      begun.append(f"begins {self.name}")

    def result(self) -> None:
      begun.append(f"ends {self.name}")

  monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", Saving)
  one, other = Checkpoints(tmp_path / "one"), Checkpoints(tmp_path / "other")
  state = {"params": {"a": np.ones(2)}, "opt_state": {"a": np.ones(2)}}
  for step in (0, 1):
    one.save(state, step)
    other.save(state, step)
  other.wait()
  assert begun == [f"{what} {name} {step}" for step in (0, 1) for name in ("one", "other")
                   for what in ("begins", "ends")]
