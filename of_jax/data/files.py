"""Documents from files: the Python standard library, and a user's text.

Enters: a path. Leaves: a `Source` whose fingerprint is a hash of every file's name and content.
"""

import dataclasses
import functools
import hashlib
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.config.paths import check_file, expanded
from of_jax.data import compressed, json_lines
from of_jax.data import text as text_lib
from of_jax.data import text_file
from of_jax.data.documents import Document, Source, Split, encode_name, held_out, hold_out
from of_jax.data.folder import file_sha256
from of_jax.data.json_documents import Chosen, JsonDocuments
from of_jax.data.text import NotText
from of_jax.data.walk import Found, walk
from of_jax.errors import UserError

Log = Callable[[str], None]

_NOT_THE_LIBRARY = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"))
# What a compressed file in a folder is read for: others that are compressed are left out.
_PACKED_TEXT = (".txt", ".json", ".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class _File:
  name: str  # relative, with slashes
  path: Path
  size: int
  sha256: str  # of what it holds; of JSON lines, of the file
  field: str | None = None  # of JSON lines, the text's


def python_stdlib() -> Source:
  """Describes the corpus of .py files in this Python's standard library, without its tests.

  Raises:
    UserError: this Python has no such files.
  """
  root = Path(sysconfig.get_paths()["stdlib"])
  found = walk(root, lambda folder: folder not in _NOT_THE_LIBRARY,
               lambda file: file.endswith(".py"), follow=False)
  files, _ = _scan(root, found.files, "")
  if not files:
    raise UserError(f"config.data.corpus=python_stdlib: no .py files in {root}; "
                    "use text:PATH with a folder of text")
  return Source("python_stdlib", _fingerprint(files), functools.partial(_split, "", files, None))


def text(path_text: str, log: Log, field: str = "", scratch: Path | None = None) -> Source:
  """Describes the corpus of a folder's UTF-8 files, subfolders included, or of one UTF-8 file.

  A file of JSON lines is a document a line. Hidden files, binary files and files that are not UTF-8
  are left out of a folder, and counted in a line to `log`; linked folders are entered once each.

  Args:
    path_text: the path of a file or folder.
    log: takes lines.
    field: of JSON lines, the text's; "" for `text` or else `content`.
    scratch: folder on whose disk texts of JSON lines wait; default the system's.

  Raises:
    UserError: nothing at that path, files that cannot be read, or no text in them.
  """
  name = f"text:{path_text}"
  where = f"config.data.corpus={name}"
  root = expanded(path_text, where)
  if not root.exists():
    raise UserError(f"{where}: no such file or folder")
  if not root.is_dir():
    check_file(where, root)
  try:
    if root.is_dir():
      found = walk(root, _visible, _visible)
      files, left_out = _scan(root, found.files, field)
    else:
      found = Found([root], [], [])
      files, left_out = [_single(root, field)], {}
  except NotText as error:
    raise UserError(f"{where}: {error}") from None
  except OSError as error:
    raise UserError(f"{where}: cannot be read: {error.strerror}: {error.filename}") from None
  if not files:
    raise UserError(f"{where}: " + (
        f"none of its {len(found.files):,} files is UTF-8 text" if found.files
        else "a folder without files"))
  record = _record(found, files, left_out, field)
  for line in _said(record, left_out, len(found.files)):
    log(f"{name}: {line}")
  if field and not any(file.field for file in files):
    raise UserError(f"{where}: none of its files is JSON lines with {field}; "
                    f"leave config.data.text_field={field} out")
  return Source(name, _fingerprint(files), functools.partial(_split, where, files, scratch),
                record)


def _visible(name: str) -> bool:
  return not name.startswith(".")


def _record(found: Found, files: list[_File], left_out: dict[str, str], field: str
            ) -> dict[str, Any]:
  """Makes what a run records of the files, beside what it records of every text."""
  raw = [file.name for file in files if file.field is None and json_lines.seems_json(file.path)]
  return {"text_fields": dict(Counter(file.field for file in files if file.field)),
          "files": len(files), "left_out": len(left_out), "raw_json": len(raw),
          "linked_folders": found.linked, "links_skipped": found.skipped}


def _said(record: dict[str, Any], left_out: dict[str, str], count: int) -> list[str]:
  """Makes lines of what a user may not expect of the files."""
  lines = []
  if left_out:
    some = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:2])
    more = "; ..." if len(left_out) > 2 else ""
    lines.append(f"left out {len(left_out):,} of {count:,} files, which are empty, binary or not "
                 f"UTF-8 ({some}{more})")
  if record["raw_json"]:
    lines.append(f"{record['raw_json']:,} of {count:,} files are tokenised as they are, as raw "
                 "JSON; they are not JSON lines (.jsonl, .ndjson) with a text each")
  if record["linked_folders"]:
    lines.append("entered linked folders, once each: " + _some(record["linked_folders"]))
  if record["links_skipped"]:
    lines.append("left out links to what is read already or to nothing: "
                 + _some(record["links_skipped"]))
  return lines


def _some(names: list[str]) -> str:
  return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _scan(root: Path, paths: list[Path], field: str) -> tuple[list[_File], dict[str, str]]:
  """Finds the files that hold UTF-8 text, and the names of those that do not, with the reasons."""
  files, left_out = [], {}
  for path in paths:
    name = path.relative_to(root).as_posix()
    try:
      inner = compressed.inner_name(path.name)
      if inner != path.name and not inner.endswith(_PACKED_TEXT):
        raise NotText("compressed, and not named as text")
      files.append(_file(name, path, _field_in_folder(path, field)))
    except NotText as error:
      left_out[name] = str(error)
  return files, left_out


def _field_in_folder(path: Path, wanted: str) -> str | None:
  """Chooses the text's field; where nobody asked for one, a file without it is plain text."""
  try:
    return json_lines.field_of(path, wanted)
  except NotText:
    if wanted:
      raise
    return None


def _single(path: Path, field: str) -> _File:
  """Describes the one file of a corpus."""
  return _file(path.name, path, text_file.choose_field(path, field))


def _file(name: str, path: Path, field: str | None) -> _File:
  if field is not None:
    return _File(name, path, path.stat().st_size, file_sha256(path), field)
  raw = text_file.content(path)
  if not raw:
    raise NotText("an empty file")
  text_lib.decode(raw)
  return _File(name, path, len(raw), hashlib.sha256(raw).hexdigest())


def _fingerprint(files: list[_File]) -> str:
  digest = hashlib.sha256()
  for file in files:
    field = "" if file.field is None else f"\0{file.field}"
    digest.update(encode_name(file.name) + f"\0{file.sha256}{field}\n".encode())
  return digest.hexdigest()


def _split(where: str, files: list[_File], scratch: Path | None, fraction: float) -> Split:
  """Holds out whole files; a part of every file where files are too few or too large for that."""
  sizes = {file.name: file.size for file in files}
  held = hold_out(sizes, fraction)
  if sum(sizes[name] for name in held) >= 0.5 * fraction * sum(sizes.values()):
    parts: dict[bool, Any] = {True: [], False: []}
    for file in files:
      documents = _documents(where, file, scratch)
      parts[file.name in held].append((documents, range(len(documents))))
    return Split(Chosen(parts[False]), Chosen(parts[True]),
                 "by file, in the order of the paths' sha256")
  parts = {True: [], False: []}
  for file in files:
    if file.field is None:
      cut = _cut(_raw(file), fraction)
      for is_held, start, end in ((False, 0, cut), (True, cut, file.size)):
        if end > start:
          parts[is_held].append(([Document(f"{file.name}[{start}:{end}]", end - start,
                                           functools.partial(_read, file, start, end))], [0]))
    else:
      documents = _documents(where, file, scratch)
      numbers = np.arange(len(documents))
      # Few documents may all be kept; then the last is held out.
      chosen = np.array(held_out(len(documents), fraction) or numbers[-1:], np.int64)
      parts[False].append((documents, np.setdiff1d(numbers, chosen)))
      parts[True].append((documents, chosen))
  train, validation = Chosen(parts[False]), Chosen(parts[True])
  if not train or not validation:
    raise UserError(f"{where}: {sum(sizes.values())} bytes are too few to hold out "
                    f"config.data.validation_fraction={fraction}")
  return Split(train, validation, "by line, " + (
      "of JSON lines by the sha256 of their numbers, of others " if any(
          file.field for file in files) else "") + "the last of every file")


def _documents(where: str, file: _File, scratch: Path | None) -> Sequence[Document]:
  """Makes the documents of a file: itself, or its lines where it is JSON lines."""
  if file.field is None:
    return [Document(file.name, file.size, functools.partial(_read, file))]
  try:
    documents = JsonDocuments(file.path, file.name, file.field, scratch)
  except NotText as error:
    raise UserError(f"{where}: {file.name}: {error}") from None
  if file_sha256(file.path) != file.sha256:
    raise _changed(file)
  return documents


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
  raw = text_file.content(file.path)
  if hashlib.sha256(raw).hexdigest() != file.sha256:
    raise _changed(file)
  return raw


def _changed(file: _File) -> UserError:
  return UserError(f"{file.path}: changed while the corpus was read; run again")


def _read(file: _File, start: int = 0, end: int | None = None) -> str:
  return text_lib.decode(_raw(file)[start:end])
