"""One text that is given by its path, as --text is: read as a corpus would read it.

Enters: a path. Leaves: its documents, and what a run records of how they were read.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from of_jax.config.paths import check_file
from of_jax.data import compressed, json_lines, text
from of_jax.data.text import NotText
from of_jax.errors import UserError

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Given:
  """Documents of one file.

  Attributes:
    documents: the texts, each of which ends with an end token; one, but for JSON lines.
    record: how they were read, for JSON: the policy, sizes, hash, and counts of the unusual.
  """

  documents: tuple[str, ...]
  record: dict[str, Any]


def read(path: Path, where: str, field: str, log: Log) -> Given:
  """Reads the file, and says in a line to `log` what is unusual in it.

  Args:
    path: a UTF-8 file, or JSON lines with a text each; .gz, .zst, .bz2 and .xz are unpacked.
    where: begins messages: the flag that gave the path.
    field: of JSON lines, the text's name; "" for `text` or else `content`.
    log: is given the line, where there is one.

  Raises:
    UserError: no such file, no text, or JSON lines without one.
  """
  check_file(where, path)
  try:
    chosen = choose_field(path, field)
    documents = (tuple(json_lines.texts(path, chosen)) if chosen
                 else (text.decode(content(path)),))
    digest = _sha256(path)
  except NotText as error:
    raise UserError(f"{where}: {error}") from None
  except OSError as error:
    reason = ("no such file" if isinstance(error, FileNotFoundError)
              else f"cannot be read: {error.strerror}")
    raise UserError(f"{where}: {reason}") from None
  if not any(documents):
    raise UserError(f"{where}: holds no text")
  record = {**text.record(documents), "sha256": digest, "documents": len(documents),
            "bytes": sum(len(document.encode("utf-8")) for document in documents),
            "text_fields": {chosen: 1} if chosen else {}}
  said = text.describe_unusual(record["unusual"])
  if said:
    log(f"{where}: kept as they are: {said}")
  if chosen is None and json_lines.seems_json(path):
    log(f"{where}: is tokenised as it is, as raw JSON; it is not JSON lines (.jsonl, .ndjson) with "
        "a text each")
  return Given(documents, record)


def choose_field(path: Path, wanted: str) -> str | None:
  """Chooses the field of JSON lines of a file that is given by its name; None of a plain text.

  Raises:
    NotText: JSON lines whose text's name is not known, or a field asked for of another file.
    OSError: the file cannot be read.
  """
  chosen = json_lines.field_of(path, wanted)
  if chosen is None and json_lines.is_named_so(path):
    raise NotText(f"its first line has neither {' nor '.join(json_lines.TEXT_FIELDS)}, "
                  f"{json_lines.keys(path)}; say by text_field which of them is the text")
  if chosen is None and wanted:
    raise NotText(f"is not JSON lines with {wanted}; leave text_field={wanted} out")
  return chosen


def content(path: Path) -> bytes:
  """Reads a whole file, unpacked where its name says that it is compressed."""
  with compressed.reading(path) as stream:
    return stream.read()


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
