"""The run directory: file names, and how its JSON is written and read back.

Everything that a run leaves and everything that analysis knows passes through here, so that
analysis never needs the trainer. docs/run_directory.md says what each file holds.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import math
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.config.paths import check_file
from of_jax.errors import UserError, reason_of

CONFIG = "config.json"
ENVIRONMENT = "env.json"
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
CHECKPOINTS = "checkpoints"
# Of a checkpoint, by Orbax: what the run keeps beside its arrays is its `custom_metadata`.
METADATA = "_CHECKPOINT_METADATA"
TOKENIZER = "tokenizer.json"
SOURCE_DIFF = "source.diff"
DONE = "DONE"
# A line each time a run leaves the band of its ladder.
ALARMS = "alarms.jsonl"
# Copies of the files that telemetry.user_metrics names.
USER_METRICS = "user_metrics"
# Batches of steps that were not finite.
DIVERGENCE = "divergence"
# Behind the name of what was found damaged, and is kept.
ASIDE = ".set_aside"
# The folder of lock files in a study's folder.
CLAIMS = ".claims"


def plain(value: Any) -> Any:
  """Converts `value` to what JSON can hold: arrays become lists, what is not finite becomes None.

  A float32 is written with the fewest digits that give it back. An integer of an array cannot be
  NaN: there the smallest one stands for undefined.
  """
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, np.ndarray):
    return [plain(item) for item in value] if value.ndim else plain(value[()])
  if isinstance(value, np.signedinteger) and value == np.iinfo(value.dtype).min:
    return None
  if isinstance(value, np.generic):
    value = float(str(value)) if isinstance(value, np.float32) else value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def replace_text(path: Path, text: str) -> None:
  """Writes a UTF-8 text file whole or not at all: a reader sees the old content or the new one.

  The text goes into a temporary file in the same folder, reaches the disk, and takes the name.
  """
  with whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """Yields a name in the same folder, of the same suffix, to write a file under; when the block
  ends, the file takes the name `path`, and where the block fails, none is left."""
  temporary = path.with_name(f".{path.stem[:80]}.{unique()}{path.suffix[:20]}")
  try:
    yield temporary
    os.replace(temporary, path)
  except BaseException as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    if isinstance(error, OSError):
      raise OSError(error.errno, error.strerror, str(path)) from error
    raise


def unique() -> str:
  """Makes what no other process has, on whatever machine or in whatever container: the host, the
  process and 64 random bits; process ids of containers that share a folder may be equal."""
  host = "".join(c for c in socket.gethostname() if c.isascii() and (c.isalnum() or c in "-_"))
  return f"{host[:60]}-{os.getpid()}-{secrets.token_hex(8)}"


def write_json(path: Path, value: Any) -> None:
  """Writes `plain(value)` as indented JSON, whole or not at all."""
  replace_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
  """Reads a file of JSON.

  Raises:
    UserError: the file is missing or is not JSON.
  """
  try:
    if not path.exists():
      raise UserError(f"{path}: no such file; is {path.parent} a run directory?")
    check_file(str(path), path)
    return json.loads(path.read_text())
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f"{path}: not readable as JSON: {reason_of(error)}") from None


def read_object(path: Path) -> dict[str, Any]:
  """Reads a file of one JSON object. Raises UserError as `read_json`, and for anything else."""
  value = read_json(path)
  if not isinstance(value, dict):
    raise UserError(f"{path}: holds no JSON object")
  return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
  """Yields the records of a JSON-lines file, without a torn last line as a killed run leaves it.

  A missing file has no records.

  Raises:
    UserError: a whole line is not a JSON object.
  """
  if not path.exists():
    return
  check_file(str(path), path)
  with path.open(errors="replace") as file:
    for number, line in enumerate(file, 1):
      if not line.endswith("\n"):
        return
      try:
        record = json.loads(line)
      except (ValueError, RecursionError):
        raise UserError(f"{path}, line {number}: not JSON") from None
      if not isinstance(record, dict):
        raise UserError(f"{path}, line {number}: not a JSON object")
      yield record


def keep_lines_until(path: Path, step: int) -> None:
  """Drops the records after `step`, and what is none, as a torn last line."""
  if not path.is_file():
    return
  kept = []
  for line in path.read_bytes().splitlines():
    try:
      record = json.loads(line)
      if record["step"] <= step:
        kept.append(json.dumps(record) + "\n")
    except (ValueError, TypeError, KeyError, RecursionError):
      continue
  replace_text(path, "".join(kept))


def name_aside(path: Any) -> Any:
  """Finds a free name beside `path`, a path here or in a store, for what is kept but not used."""
  names = (f"{path.name}{ASIDE}" + (f"_{n}" if n > 1 else "") for n in itertools.count(1))
  return next(there for name in names if not (there := path.parent / name).exists())


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
  """Locks the directory against other processes; the kernel unlocks it if this one dies.

  Raises:
    UserError: another process holds it.
  """
  handle = os.open(directory, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f"{directory}: another process is writing this run directory") from None
    except OSError as error:
      # Network file systems may not lock a folder. Nothing is held then.
      if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):
        raise
    yield
  finally:
    os.close(handle)


@contextlib.contextmanager
def claimed(root: Path, name: str) -> Iterator[bool]:
  """Claims one run of a study against other workers, on whatever machine that shares `root`.

  Yields whether this process has it; the kernel lets go of it if the process dies.
  """
  (root / CLAIMS).mkdir(parents=True, exist_ok=True)
  # Open for writing: NFS grants exclusive locks on nothing else.
  with (root / CLAIMS / name).open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
      return
    yield True


@contextlib.contextmanager
def waiting_for(root: Path, name: str) -> Iterator[None]:
  """Holds a lock of a study's folder, once whoever else has it lets go of it or dies."""
  (root / CLAIMS).mkdir(parents=True, exist_ok=True)
  with (root / CLAIMS / name).open("a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
