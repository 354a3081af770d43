"""The cache of tokens and images: built once, replaced whole, never trusted without its hashes.

Enters: what decides a corpus's content, and how to build it. Leaves: the opened corpus.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from of_jax.config.paths import expanded
from of_jax.data.folder import FORMAT_VERSION, Damaged
from of_jax.errors import UserError

Log = Callable[[str], None]
T = TypeVar("T")


def open_or_build(cache_dir: str, name: str, key: Mapping[str, object],
                  build: Callable[[Path], None], log: Log, open_entry: Callable[[Path], T]) -> T:
  """Opens the corpus that `key` names from the cache, building it there first if it is missing.

  A good entry is opened without writing anything, so a read-only cache serves. Of several
  processes one builds, the others wait. An entry that is not what it should be is rebuilt.

  Args:
    cache_dir: folder of entries; made where there is none.
    name: beginning of the entry's name, for people.
    key: everything that decides the content.
    build: writes a complete entry into the empty folder it is given.
    log: is given a line on everything that takes time or went wrong.
    open_entry: opens a complete entry, or raises Damaged.

  Raises:
    UserError: the cache cannot be written, or what `build` raises.
  """
  digest = hashlib.sha256(
      json.dumps({**key, "format": FORMAT_VERSION}, sort_keys=True).encode()).hexdigest()
  root = expanded(cache_dir).absolute()
  entry = root / f"{name}-{digest[:16]}"
  if entry.exists():
    try:
      return open_entry(entry)
    except (Damaged, OSError):
      pass  # Said below, once no other process can be in the middle of replacing it.
  with writing(cache_dir), locked(entry, log):
    if entry.exists():
      try:
        return open_entry(entry)
      except Damaged as damage:
        log(f"{entry}: {damage}; built anew")
    with replacing(entry) as folder:
      build(folder)
    return open_entry(entry)


@contextmanager
def writing(cache_dir: str) -> Iterator[None]:
  """Makes the cache folder and turns errors of writing there into one line for the user.

  Raises:
    UserError: the folder or a file in it cannot be written, or a source's file cannot be read.
  """
  root = expanded(cache_dir).absolute()
  try:
    root.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    # A source's file that fails to open is not the cache's fault.
    path = Path(os.fsdecode(error.filename or root)).absolute()
    if not (path.is_relative_to(root) or root.is_relative_to(path)):
      raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    raise UserError(f"config.data.cache_dir={cache_dir}: cannot be written: "
                    f"{error.strerror or error}; give a folder that can") from None


@contextmanager
def locked(entry: Path, log: Log) -> Iterator[None]:
  """Holds the entry's lock for the block, waiting for it first.

  The lock ends with the process, however that ends.
  """
  from filelock import FileLock, Timeout
  lock = FileLock(entry.with_name(f".{entry.name}.lock"))
  try:
    lock.acquire(timeout=0)
  except Timeout:
    log(f"{entry}: another process is preparing it; waiting")
    lock.acquire()
  try:
    yield
  finally:
    lock.release()


@contextmanager
def replacing(entry: Path) -> Iterator[Path]:
  """Yields an empty folder that takes the place of `entry` if the block ends without an error.

  The caller holds the entry's lock, so what an interrupted build left behind can go first.
  """
  prefix = f".{entry.name}.building-"
  for stale in entry.parent.glob(prefix + "*"):
    shutil.rmtree(stale, ignore_errors=True)
  folder = Path(tempfile.mkdtemp(prefix=prefix, dir=entry.parent))
  try:
    yield folder
    if entry.is_dir() and not entry.is_symlink():
      # A folder cannot be renamed onto a full one: the old one steps aside first.
      aside = Path(tempfile.mkdtemp(prefix=prefix, dir=entry.parent))
      entry.rename(aside / "old")
      folder.rename(entry)
      shutil.rmtree(aside, ignore_errors=True)
    else:
      entry.unlink(missing_ok=True)
      folder.rename(entry)
    # mkdtemp lets only its owner in; a shared cache is read by others.
    entry.chmod(0o777 & ~_umask())
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
