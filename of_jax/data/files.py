"""Documents from files: the Python standard library, and a user's text.

Enters: a path. Leaves: a `Source` whose fingerprint is a hash of every file's name and content.
"""

import dataclasses
import functools
import hashlib
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

from of_jax.data.documents import Document, Source, Split, encode_name, hold_out
from of_jax.errors import UserError

Log = Callable[[str], None]

_NOT_THE_LIBRARY = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"))


@dataclasses.dataclass(frozen=True)
class _File:
  name: str  # relative, with slashes
  path: Path
  size: int
  sha256: str


def python_stdlib() -> Source:
  """Describes the corpus of .py files in this Python's standard library, without its tests.

  Raises:
    UserError: this Python has no such files.
  """
  root = Path(sysconfig.get_paths()["stdlib"])
  paths = _walk(root, lambda folder: folder not in _NOT_THE_LIBRARY,
                lambda file: file.endswith(".py"))
  files, _ = _scan(root, paths)
  if not files:
    raise UserError(f"config.data.corpus=python_stdlib: no .py files in {root}; "
                    "use text:PATH with a folder of text")
  return Source("python_stdlib", _fingerprint(files), functools.partial(_split, "", files))


def text(path_text: str, log: Log) -> Source:
  """Describes the corpus of a folder's UTF-8 files, subfolders included, or of one UTF-8 file.

  Hidden files, binary files and files that are not UTF-8 are left out of a folder, and counted
  in a line to `log`.

  Raises:
    UserError: nothing at that path, files that cannot be read, or no text in them.
  """
  name = f"text:{path_text}"
  where = f"config.data.corpus={name}"
  root = Path(path_text).expanduser()
  if not root.exists():
    raise UserError(f"{where}: no such file or folder")
  try:
    if root.is_dir():
      paths = _walk(root, _visible, _visible)
      files, left_out = _scan(root, paths)
      if left_out:
        log(f"{name}: left out {left_out:,} of {len(paths):,} files, which are empty, binary "
            "or not UTF-8")
    else:
      paths = [root]
      files, _ = _scan(root.parent, paths)
  except OSError as error:
    raise UserError(f"{where}: cannot be read: {error.strerror}: {error.filename}") from None
  if not files:
    raise UserError(f"{where}: " + (
        f"none of its {len(paths):,} files is UTF-8 text" if root.is_dir() and paths
        else "a folder without files" if root.is_dir()
        else "an empty file" if not root.stat().st_size else "not UTF-8 text"))
  return Source(name, _fingerprint(files), functools.partial(_split, where, files))


def _visible(name: str) -> bool:
  return not name.startswith(".")


def _walk(root: Path, enter: Callable[[str], bool], take: Callable[[str], bool]) -> list[Path]:
  """Finds the files below `root`, in the order of their relative paths."""
  found = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if enter(name)]
    found += [Path(folder, name) for name in names if take(name)]
  return sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(root).as_posix())


def _scan(root: Path, paths: list[Path]) -> tuple[list[_File], int]:
  """Finds the files that hold UTF-8 text, and counts those that do not."""
  files = []
  for path in paths:
    raw = path.read_bytes()
    try:
      raw.decode("utf-8")
    except UnicodeDecodeError:
      continue
    if raw and b"\0" not in raw:
      files.append(_File(path.relative_to(root).as_posix(), path, len(raw),
                         hashlib.sha256(raw).hexdigest()))
  return files, len(paths) - len(files)


def _fingerprint(files: list[_File]) -> str:
  digest = hashlib.sha256()
  for file in files:
    digest.update(encode_name(file.name) + f"\0{file.sha256}\n".encode())
  return digest.hexdigest()


def _split(where: str, files: list[_File], fraction: float) -> Split:
  """Holds out whole files; lines of every file where files are too few or too large for that."""
  sizes = {file.name: file.size for file in files}
  held = hold_out(sizes, fraction)
  if sum(sizes[name] for name in held) >= 0.5 * fraction * sum(sizes.values()):
    documents = {file.name: Document(file.name, file.size, functools.partial(_read, file))
                 for file in files}
    return Split(tuple(d for name, d in documents.items() if name not in held),
                 tuple(d for name, d in documents.items() if name in held),
                 "by file, in the order of the paths' sha256")
  train: list[Document] = []
  validation: list[Document] = []
  for file in files:
    cut = _cut(_raw(file), fraction)
    for part, start, end in ((train, 0, cut), (validation, cut, file.size)):
      if end > start:
        part.append(Document(f"{file.name}[{start}:{end}]", end - start,
                             functools.partial(_read, file, start, end)))
  if not train or not validation:
    raise UserError(f"{where}: {sum(sizes.values())} bytes are too few to hold out "
                    f"config.data.validation_fraction={fraction}")
  return Split(tuple(train), tuple(validation), "by line, the last of every file")


def _cut(raw: bytes, fraction: float) -> int:
  """Finds the byte at which validation begins: the nearest line's, else the nearest character's."""
  target = round(len(raw) * (1 - fraction))
  before, after = raw.rfind(b"\n", 0, target) + 1, raw.find(b"\n", target) + 1
  cut = min((c for c in (before, after) if 0 < c < len(raw)), default=0,
            key=lambda c: abs(c - target))
  if cut and abs(cut - target) <= 0.5 * fraction * len(raw):
    return cut
  while 0 < target < len(raw) and raw[target] & 0xC0 == 0x80:  # inside a character
    target -= 1
  return target


def _raw(file: _File) -> bytes:
  raw = file.path.read_bytes()
  if hashlib.sha256(raw).hexdigest() != file.sha256:
    raise UserError(f"{file.path}: changed while the corpus was read; run again")
  return raw


def _read(file: _File, start: int = 0, end: int | None = None) -> str:
  return _raw(file)[start:end].decode("utf-8")
