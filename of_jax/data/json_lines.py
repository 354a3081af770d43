"""JSON lines: files of one JSON object a line, one of whose fields is a document's text.

Enters: a path and perhaps the field's name. Leaves: the texts, one at a time.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from of_jax.data import compressed
from of_jax.data.text import NotText

# Fields that hold the text where nobody says which, in the order in which they are looked for.
TEXT_FIELDS = ("text", "content")
_ENDINGS = (".jsonl", ".ndjson")
# A first line longer than this is no reason to look further for what a .json file is.
_LONGEST_PEEK = 1 << 24
_LONGEST_LINE = 1 << 28


def is_named_so(path: Path) -> bool:
  """Tells whether the name says JSON lines: .jsonl or .ndjson, also compressed."""
  return compressed.inner_name(path.name.lower()).endswith(_ENDINGS)


def holds_json(path: Path) -> bool:
  """Tells whether the name says JSON of any form."""
  return compressed.inner_name(path.name.lower()).endswith((*_ENDINGS, ".json"))


def seems_json(path: Path) -> bool:
  """Tells whether the name says JSON, or the first line is an object of it.

  Raises:
    OSError: the file cannot be read.
  """
  try:
    return holds_json(path) or _first(path) is not None
  except NotText:
    return False


def field_of(path: Path, wanted: str) -> str | None:
  """Chooses the field of a file's texts; None where the file is not JSON lines with one.

  Args:
    path: a file.
    wanted: the field that somebody asked for, or "".

  Raises:
    NotText: the name says JSON lines, the first line is none, or what is wanted is not in it.
    OSError: the file cannot be read.
  """
  if not holds_json(path):
    return None
  try:
    first = _first(path)
  except NotText:
    if is_named_so(path):
      raise
    return None
  if first is None:
    return None
  for name in (wanted,) if wanted else TEXT_FIELDS:
    if isinstance(first.get(name), str):
      return name
  if wanted and is_named_so(path):
    raise NotText(f"its first line has no text named {wanted}, {has(first)}")
  return None


def keys(path: Path) -> str:
  """Lists the keys of the first line, for messages."""
  first = _first(path)
  return "and is empty" if first is None else has(first)


def has(record: dict[str, Any]) -> str:
  """Lists the keys of a line in a few words."""
  return ("only " + ", ".join(list(record)[:12])) if record else "nothing at all"


def texts(path: Path, field: str) -> Iterator[str]:
  """Yields the text of every line, blank lines and empty texts left out; reads line by line.

  Raises:
    NotText: a line that is no JSON object, or has no text of that name; says which line.
    OSError: the file cannot be read.
  """
  with compressed.reading(path) as stream:
    for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE + 1), b""), 1):
      if len(line) > _LONGEST_LINE:
        raise NotText(f"line {number:,} has more than {_LONGEST_LINE:,} bytes")
      record = _parse(line, number)
      if record is None:
        continue
      if field not in record:
        raise NotText(f"line {number:,} has no {field}, {has(record)}")
      text = record[field]
      if not isinstance(text, str):
        raise NotText(f"line {number:,}: its {field} is {_kind(text)}, not text")
      try:
        text.encode("utf-8")
      except UnicodeEncodeError:
        raise NotText(f"line {number:,}: its {field} holds half a surrogate pair, which is no "
                      "character") from None
      if text:
        yield text


def _first(path: Path) -> dict[str, Any] | None:
  """Reads the first line that is not blank; None where there is none."""
  with compressed.reading(path) as stream:
    number = 0
    while line := stream.readline(_LONGEST_PEEK):
      number += 1
      record = _parse(line, number)
      if record is not None:
        return record
  return None


def _parse(line: bytes, number: int) -> dict[str, Any] | None:
  """Reads a line; None of a blank one."""
  if number == 1:
    line = line.removeprefix(b"\xef\xbb\xbf")
  if not line.strip():
    return None
  try:
    record = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise NotText(f"line {number:,} is not UTF-8: byte {line[error.start]:#04x}") from None
  except RecursionError:
    raise NotText(f"line {number:,} is JSON that is nested too deeply") from None
  except ValueError as error:
    raise NotText(f"line {number:,} is not JSON: {str(error)[:80]}") from None
  if not isinstance(record, dict):
    raise NotText(f"line {number:,} is {_kind(record)}, not an object")
  return record


def _kind(value: object) -> str:
  return {dict: "an object", list: "a list", str: "a string", bool: "true or false",
          type(None): "null"}.get(type(value), "a number")
