"""Resuming: the newest checkpoint that is whole, and a record that is what it was then.

Enters: a run directory. Leaves: the state of its newest checkpoint whose digest is the one that was
saved with it, and metrics.jsonl cut to what it was at that checkpoint. What is damaged is named,
and kept under another name.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from of_jax import config as config_lib
from of_jax.config import Config, TrainConfig
from of_jax.errors import UserError
from of_jax.storage import checkpoint, identity, record, remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.storage.digest import Damaged, check_state
from of_jax.train import distributed
from of_jax.train.trainer import Trainer
from of_jax.train.types import Log, State


@dataclasses.dataclass(frozen=True)
class Resumed:
  """A checkpoint that a run goes on from.

  Attributes:
    state, step: of the checkpoint.
    record_bytes: how much of metrics.jsonl there was.
    diverged: whether the run had ended there, since its loss is not finite.
    is_checked: whether all of the state has the digest that was saved with it.
    divergence: what of_jax.train.divergence keeps; empty in checkpoints of older versions.
  """

  state: State
  step: int
  record_bytes: int
  diverged: bool
  is_checked: bool
  divergence: dict[str, int]


@dataclasses.dataclass
class _Faults:
  """Finds on the way back to a checkpoint that is whole.

  Attributes:
    damaged: name of what lies among the checkpoints -> what is wrong with it.
    unfit: checkpoints that metrics.jsonl does not fit, newest first.
  """

  damaged: dict[str, str]
  unfit: list[int]

  def lines(self) -> list[str]:
    """Says each in a line."""
    return [f"checkpoint {name} is damaged: {reason}" for name, reason in self.damaged.items()] + [
        f"{run_directory.METRICS} is not what it was at checkpoint {step}" for step in self.unfit]


def newest_whole(workdir: Path, config: Config, trainer: Trainer, log: Log, strict: bool = False
                 ) -> Resumed | None:
  """Restores the newest checkpoint that is whole; None where the run has not saved one yet.

  The run directory is locked, and all processes of a job call this alike: process 0 looks after
  metrics.jsonl and renames, all read the state.

  Args:
    workdir: of the run.
    config: resolved.
    trainer: of the run.
    log: takes a line for what is damaged, lost or cannot be checked.
    strict: refuses where anything is damaged, and changes nothing.

  Raises:
    UserError: no checkpoint is whole, or `strict`.
  """
  name = remote.name_of(workdir)
  if not distributed.told(lambda: _has_begun(workdir)):
    return None
  with Checkpoints(workdir, reading=True) as checkpoints:
    faults, found = _Faults(distributed.told(lambda: checkpoints.strange), []), None
    for step in reversed(distributed.told(lambda: checkpoints.steps)):
      if found or strict and faults.lines():
        break
      found = _restore(workdir, config, checkpoints, trainer, step, faults)
    if strict and faults.lines():
      raise UserError(f"{name}: {_shortened(faults.lines())}; --strict_resume does not go on from "
                      "an older one")
    if not found:
      raise UserError(f"{name}: there is no checkpoint to go on from: "
                      + _shortened(faults.lines() or ["all were set aside"])
                      + "; put one back, or give another folder")
    distributed.told(lambda: _mend(workdir, checkpoints, faults, found, log))
  if not found.is_checked:
    log(f"{name}: checkpoint {found.step} is of an older version, without digests of all that it "
        "holds; damage in it would not be seen")
  return found


def _has_begun(workdir: Path) -> bool:
  """Tells whether there is, or was, a checkpoint."""
  record_path = workdir / run_directory.METRICS
  if record_path.exists() and not record_path.is_file():
    raise UserError(f"{record_path}: is no file; move it away")
  if checkpoint.has_begun(workdir):
    return True
  # The first checkpoint is on disk before the second step is written.
  last = record.last_step(record_path)
  if last > 1:
    raise UserError(f"{remote.name_of(workdir)}: {run_directory.METRICS} goes to step {last}, and "
                    "there is no checkpoint to go on from; put them back, or give another folder")
  return False


def _restore(workdir: Path, config: Config, checkpoints: Checkpoints, trainer: Trainer,
             step: int, faults: _Faults) -> Resumed | None:
  """Restores one checkpoint; returns None, and adds to the faults, where it is not whole."""
  def held() -> dict[str, Any]:
    try:
      kept = checkpoints.kept(step)
      identity.check_config(kept, config_lib.to_dict(config))
      return {"complete": kept is not None, "run": identity.words(kept).tolist(),
              "kept": _held(workdir, config.train, step, kept or {})}
    except Damaged as error:
      return {"damaged": error.reason}

  found = distributed.told(held)
  if "damaged" in found:
    faults.damaged[str(step)] = found["damaged"]
    return None
  if found["kept"] is None:
    faults.unfit.append(step)
    return None
  shapes = jax.eval_shape(trainer.init, jax.random.key(0))
  reason = ""
  try:
    state, written = checkpoints.load(shapes, trainer.shardings, step)
  except Damaged as error:
    reason = error.reason
  if distributed.any_of(bool(reason)):
    faults.damaged[str(step)] = reason or "another process cannot read it"
    return None
  try:
    # The same in every process: digests are of the whole arrays.
    is_checked = check_state(
        state, step, written, found["complete"], np.array(found["run"], np.uint32))
  except Damaged as error:
    faults.damaged[str(step)] = error.reason
    return None
  return Resumed(cast(State, state), step, is_checked=is_checked, **found["kept"])


def _held(workdir: Path, train: TrainConfig, step: int, kept: Mapping[str, Any]
          ) -> dict[str, Any] | None:
  """Holds the record against a checkpoint; returns its bytes, and whether the run diverged there.

  Returns None where the record is not what it was. Raises Damaged.
  """
  path = workdir / run_directory.METRICS
  if "metrics" not in kept:
    found = record.by_lines(path, train, step)
    return {"record_bytes": found[0], "diverged": found[1], "divergence": {}} if found else None
  try:
    fits = record.matches(path, kept["metrics"])
    policy = {str(name): int(count) for name, count in kept.get("divergence", {}).items()}
    return {"record_bytes": int(kept["metrics"]["bytes"]), "diverged": kept["diverged"] is True,
            "divergence": policy} if fits else None
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise Damaged(f"what it keeps of {run_directory.METRICS} cannot be read: {error}") from None


def _mend(workdir: Path, checkpoints: Checkpoints, faults: _Faults, found: Resumed, log: Log
          ) -> None:
  """Sets aside what is damaged, says so, and cuts the record to what it was."""
  name, path = remote.name_of(workdir), workdir / run_directory.METRICS
  for line, damaged in zip(faults.lines(), faults.damaged):
    log(f"{name}: {line}; set aside as {checkpoints.set_aside(damaged)}")
  if faults.unfit:
    aside = f"; set aside as {record.set_aside(path).name}" if path.is_file() else ""
    log(f"{name}: {run_directory.METRICS} is not what it was at checkpoint {faults.unfit[0]}{aside}"
        f"; what follows step {found.step} is computed again")
  record.cut(path, found.record_bytes)
  run_directory.keep_lines_until(workdir / run_directory.TIMING, found.step)


def _shortened(lines: list[str]) -> str:
  more = f", and {len(lines) - 2} more" if len(lines) > 3 else ""
  return ", ".join(lines[:2] if more else lines) + more
