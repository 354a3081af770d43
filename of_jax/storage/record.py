"""The record of a run, metrics.jsonl, held against its checkpoints.

A checkpoint keeps how many bytes of the record there were when it was saved, and their hash. So a
run goes on from a checkpoint only where the record up to it is what it was, byte for byte.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from of_jax.config import TrainConfig
from of_jax.errors import UserError
from of_jax.storage import remote, run_directory

_CHUNK = 1 << 20
# Lines in which the end of a run stands: a last step, and an evaluation.
_LAST = 4
_NO_LINE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


class Record:
  """The record as far as it was written, hashed on the way."""

  def __init__(self, path: Path):
    """Begins behind what there is."""
    self._path, self._bytes, self._hash = path, 0, hashlib.sha256()

  def up_to_here(self) -> dict[str, Any]:
    """Brings what was written to the disk; returns its `bytes` and `sha256`.

    Raises:
      UserError: the file has become shorter than it was.
    """
    if not self._path.exists() and not self._bytes:
      return _facts(0, self._hash)
    with self._path.open("rb") as file:
      os.fsync(file.fileno())
      if os.fstat(file.fileno()).st_size < self._bytes:
        raise UserError(f"{self._path}: was cut to fewer than {self._bytes} bytes while the run "
                        "wrote it; the same command goes on from the last checkpoint that fits it")
      file.seek(self._bytes)
      while chunk := file.read(_CHUNK):
        self._hash.update(chunk)
        self._bytes += len(chunk)
    return _facts(self._bytes, self._hash)


def empty() -> dict[str, Any]:
  """Returns what a checkpoint keeps of a record that has not begun."""
  return _facts(0, hashlib.sha256())


def _facts(length: int, hashed: Any) -> dict[str, Any]:
  return {"bytes": length, "sha256": hashed.hexdigest()}


def matches(path: Path, kept: Mapping[str, Any]) -> bool:
  """Says whether the record begins with what a checkpoint keeps of it."""
  hashed, left = hashlib.sha256(), int(kept["bytes"])
  if left:
    if not path.is_file() or path.stat().st_size < left:
      return False
    with path.open("rb") as file:
      while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
          return False
        hashed.update(chunk)
        left -= len(chunk)
  return hashed.hexdigest() == str(kept["sha256"])


def changed_since(workdir: Path) -> int | None:
  """Finds the step of the newest checkpoint, if the record no longer begins with what that keeps of
  it. Reads no array; None where the checkpoint says nothing, or lies in a store."""
  folder = remote.checkpoints(workdir)
  if remote.is_url(folder):
    return None
  step = max(remote.saved_steps(folder), default=None)
  try:
    beside = json.loads((folder / str(step) / run_directory.METADATA).read_text())
    kept = beside["custom_metadata"]["metrics"]
    return None if matches(workdir / run_directory.METRICS, kept) else step
  except (OSError, AttributeError, *_NO_LINE):
    return None


def is_logged(train: TrainConfig, step: int) -> bool:
  """Says whether a step has a line of its own."""
  return step in (1, train.steps) or step % train.log_every == 0


def is_evaluated(train: TrainConfig, step: int) -> bool:
  """Says whether a line with an evaluation follows a step."""
  return step == train.steps or step % train.eval_every == 0


def by_lines(path: Path, train: TrainConfig, step: int) -> tuple[int, bool] | None:
  """Holds the record against a checkpoint that keeps nothing of it, as those of older versions.

  Returns:
    How many bytes the lines up to `step` take, and whether a loss there is not finite, which ended
    the run; or None, where a line is missing, there twice, torn, or no line of a record. A digit
    that changed is not seen.
  """
  lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
  found = [_place(line) for line in lines]
  expected = [(at, split) for at in range(1, step + 1) for split, due in (
      ("train", is_logged(train, at)), ("eval", is_evaluated(train, at))) if due]
  count = len(expected)
  if [place and place[:2] for place in found[:count]] != expected:
    return None
  diverged = any(place is not None and place[2] for place in found[:count])
  # What has diverged is evaluated where that is noticed.
  if diverged and found[count:count + 1] and (found[count] or ())[:2] == (step, "eval"):
    count += 1
  return sum(map(len, lines[:count])), diverged


def _place(line: bytes) -> tuple[int, str, bool] | None:
  """Reads of a whole line its step, split, and whether it is a training loss that is not finite."""
  if not line.endswith(b"\n"):
    return None
  try:
    read = json.loads(line)
    return read["step"], read["split"], read["split"] == "train" and read["loss"] is None
  except _NO_LINE:
    return None


def last_step(path: Path) -> int:
  """Finds the last step that a record speaks of; 0 where none can be read."""
  steps = [0]
  for line in path.read_bytes().splitlines() if path.is_file() else ():
    try:
      steps.append(int(json.loads(line)["step"]))
    except _NO_LINE:
      continue
  return max(steps)


def end(path: Path) -> tuple[int, bool]:
  """Reads the step of a record's last whole line, 0 without one, and whether the training losses
  that stand last are finite."""
  last, is_finite = 0, True
  lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
  for line in reversed(lines[-_LAST:]):
    place = _place(line)
    if place:
      last, is_finite = max(last, place[0]), is_finite and not place[2]
  return last, is_finite


def cut(path: Path, length: int) -> None:
  """Cuts the record to its first bytes, which a resumed run goes on from."""
  if path.is_file() and path.stat().st_size > length:
    os.truncate(path, length)
    with path.open("rb") as file:
      os.fsync(file.fileno())


def set_aside(path: Path) -> Path:
  """Copies a record that no longer fits its run, so that nothing is lost; returns the copy."""
  there: Path = run_directory.name_aside(path)
  shutil.copyfile(path, there)
  return there
