"""Run directories in an object store, gs://bucket/run, through etils.epath.

A store neither appends nor renames nor locks, which the small files of a run need. So a run works
in a local folder that has what the store has, its mirror, and puts back what changed: before every
checkpoint, since a resumed run keeps the lines logged before it, and at evaluations and the end.
Checkpoints go to the store themselves. `DONE` is put back last. A mirror knows its place by a file
of its own; a folder without one is local, and everything here leaves it alone.
"""

import atexit
import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from of_jax.config.paths import expanded
from of_jax.errors import UserError, refusing
from of_jax.storage import run_directory

_PLACE = ".remote"
# name -> (bytes, time of change) of a mirror's files as they are in the store.
_Known = dict[str, tuple[int, int]]


def is_url(path: str | Path) -> bool:
  """Says whether a run directory is in an object store.

  Raises:
    UserError: in one other than Cloud Storage.
  """
  scheme, found, _ = str(path).partition("://")
  if found and scheme != "gs":
    raise UserError(f"{path}: run directories are folders, or in Cloud Storage: gs://BUCKET/RUN")
  return bool(found)


def name_of(directory: Path) -> str:
  """Returns a run directory's name for the user: its URL if it is a mirror, else its path."""
  place = directory / _PLACE
  if not place.is_file():
    return str(directory)
  with refusing(str(place), "names no place in a store"):
    return str(json.loads(place.read_text())["url"])


def checkpoints(directory: Path) -> Any:
  """Returns the folder of a run's checkpoints, an etils.epath path if it is in a store."""
  name = name_of(directory)
  own = _path(name) if is_url(name) else directory.absolute()
  return own / run_directory.CHECKPOINTS


def is_step(name: str) -> bool:
  """Says whether an entry of the folder of checkpoints is named as a step is."""
  return name.isascii() and name.isdecimal() and str(int(name)) == name


def saved_steps(folder: Any) -> list[int]:
  """Lists the steps that were saved whole in a folder of checkpoints, ascending; empty without one.

  A save that did not come to its end does not count: here it has another name, and in a store,
  which does not rename, a file says that it is whole.
  """
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir()
                if is_step(path.name) and path.is_dir()
                and (not is_url(path) or (path / "commit_success.txt").exists()))


@contextlib.contextmanager
def working(workdir: str | Path, writes: bool) -> Iterator[Path]:
  """Yields the folder to run in: `workdir`, or a mirror of it, put back when the block ends.

  Args:
    workdir: a folder or a URL.
    writes: whether this process is the one that puts files back.

  Raises:
    UserError: the store cannot be read or written.
  """
  if not is_url(workdir):
    yield expanded(workdir)
    return
  with tempfile.TemporaryDirectory(prefix="of_jax_") as folder:
    mirror = _refresh(str(workdir), Path(folder) / PurePosixPath(str(workdir)).name)
    try:
      yield mirror
    except UserError as error:
      raise type(error)(str(error).replace(str(mirror), str(workdir))) from error
    finally:
      if writes:
        put_back(mirror)


def reading(run: str | Path) -> Path:
  """Returns the folder to read a run from: its own, or a mirror as the store is now.

  Raises:
    UserError: the store cannot be read.
  """
  if not is_url(run):
    return expanded(run)
  url = str(run).rstrip("/")
  return _refresh(url, _folder_for_reading() / url.replace("://", "/"))


def put_back(directory: Path) -> None:
  """Writes what changed in a mirror back to the store; leaves a local folder alone.

  Raises:
    UserError: the store cannot be written.
  """
  place = directory / _PLACE
  if not place.is_file():
    return
  record = json.loads(place.read_text())
  url, known = record["url"], record["known"]
  found = {str(path.relative_to(directory)): path for path in directory.rglob("*")
           if path.is_file() and not path.name.startswith(".")}
  for name in sorted(found, key=lambda name: (name == run_directory.DONE, name)):
    stamp = list(_stamp(found[name]))
    if known.get(name) == stamp:
      continue
    with _speaking(url, "written"):
      target = _path(url) / name
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(found[name].read_bytes())
    known[name] = stamp
  place.write_text(json.dumps(record))


def _refresh(url: str, mirror: Path) -> Path:
  """Makes `mirror` have what the store has, checkpoints apart."""
  mirror.mkdir(parents=True, exist_ok=True)
  place = mirror / _PLACE
  seen: dict[str, Any] = json.loads(place.read_text())["seen"] if place.is_file() else {}
  now: dict[str, Any] = {}
  with _speaking(url, "read"):
    for name, file in _files(_path(url)):
      stat = file.stat()
      now[name] = [stat.length, str(stat.mtime)]
      if seen.get(name) != now[name]:
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).write_bytes(file.read_bytes())
  known: _Known = {name: _stamp(mirror / name) for name in now}
  place.write_text(json.dumps({"url": url, "seen": now, "known": known}))
  return mirror


def _files(folder: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (name, path) of the files in a folder of the store and those below."""
  if not folder.is_dir():
    return
  for path in folder.iterdir():
    name = f"{prefix}{path.name}"
    if path.is_dir():
      if path.name != run_directory.CHECKPOINTS:
        yield from _files(path, f"{name}/")
    else:
      yield name, path


def _stamp(path: Path) -> tuple[int, int]:
  stat = path.stat()
  return stat.st_size, stat.st_mtime_ns


def _path(url: str) -> Any:
  from etils import epath
  return epath.Path(url)


@contextlib.contextmanager
def _speaking(url: str, what: str) -> Iterator[None]:
  """Turns whatever a store's client raises into one line for the user."""
  try:
    yield
  except Exception as error:
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, ImportError):
      reason += "; run pip install -e '.[gcs]'"
    raise UserError(f"{url}: cannot be {what}: {type(error).__name__}: {reason}") from error


@functools.cache
def _folder_for_reading() -> Path:
  folder = tempfile.mkdtemp(prefix="of_jax_")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return Path(folder)
