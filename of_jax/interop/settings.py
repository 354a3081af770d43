"""Config of a foreign model, read field by field with its types checked."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from of_jax.config.paths import check_file
from of_jax.errors import UserError

_LARGEST_FILE = 10_000_000
# Above any vocabulary or length; a list of so many blocks still fits in memory.
_LARGEST_NUMBER = 2 ** 24


class Settings:
  """Fields of a config, as given. Defaults are those of the library that wrote it.

  Attributes:
    where: the file, for messages.
    notes: what a user should know of how fields were understood.
  """

  def __init__(self, fields: Mapping[str, Any], where: str):
    self.where = where
    self._fields = dict(fields)
    self._read: set[str] = set()
    self._parts: dict[str, Settings] = {}
    self.notes: list[str] = []

  @classmethod
  def from_json(cls, path: Path) -> "Settings":
    """Reads a file; raises UserError where it is missing or is not a JSON object."""
    return cls(read_object(path), str(path))

  def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
    """Reads a whole number from `least`; without a default the field must be there."""
    value = self._get(name, default)
    self.require(type(value) is int and least <= value < _LARGEST_NUMBER, name,
                 f"must be a whole number of {least} or more, below {_LARGEST_NUMBER}")
    return int(value)

  def number(self, name: str, default: float | None = None) -> float:
    """Reads a finite number."""
    value = self._get(name, default)
    # The bound also holds off NaN and infinity, which JSON's readers let through.
    self.require(type(value) in (int, float) and abs(value) < 1e30, name, "must be a number")
    return float(value)

  def optional_number(self, name: str, default: float | None = None) -> float | None:
    """Reads a finite number, or None for null."""
    return None if self.get(name, default) is None else self.number(name, default)

  def flag(self, name: str, default: bool) -> bool:
    """Reads true or false."""
    value = self._get(name, default)
    self.require(type(value) is bool, name, "must be true or false")
    return bool(value)

  def choice(self, name: str, choices: Mapping[str, Any], default: str | None = None) -> Any:
    """Reads a text and gives its value in `choices`."""
    value = self._get(name, default)
    self.require(isinstance(value, str) and value in choices, name,
                 f"is not one that of_jax has; those are {', '.join(choices)}")
    return choices[value]

  def get(self, name: str, default: Any = None) -> Any:
    """Reads a field of any type, or gives the default."""
    self._read.add(name)
    return self._fields.get(name, default)

  def part(self, name: str) -> "Settings":
    """Reads a field that is itself an object, or gives an empty one; see `finish`."""
    value = self.get(name)
    self.require(value is None or isinstance(value, dict), name, "must be an object")
    return self._parts.setdefault(name, Settings(value or {}, f"{self.where}, {name}"))

  def peek(self) -> dict[str, Any]:
    """Returns all fields, none of which then counts as read."""
    return dict(self._fields)

  def finish(self) -> None:
    """Raises UserError about a field that nobody has asked for in an object that was read."""
    for part in self._parts.values():
      for name in part.unread():
        part.require(False, name, "of_jax does not know what this field does there")
      part.finish()

  def note(self, text: str) -> None:
    """Keeps a line for the user, once."""
    if text not in self.notes:
      self.notes.append(text)

  def refuse(self, name: str, *accepted: Any, what: str) -> None:
    """Raises UserError unless the field is absent or one of `accepted`."""
    value = self.get(name)
    self.require(value is None or any(value is a or value == a and type(value) is not bool
                                      for a in accepted), name, what)

  def require(self, condition: bool, name: str, what: str) -> None:
    """Raises UserError about a field unless `condition`."""
    if not condition:
      raise UserError(f"{self.where}: {name}={str(self._fields.get(name))[:60]}: {what}")

  def set_aside(self, pattern: str) -> None:
    """Counts fields as read whose whole names match: they do not change the function of a model."""
    self._read |= {name for name in self._fields if re.fullmatch(pattern, name)}

  def unread(self) -> tuple[str, ...]:
    """Names of the fields that nobody has asked for."""
    return tuple(sorted(self._fields.keys() - self._read))

  def _get(self, name: str, default: Any) -> Any:
    value = self.get(name)
    if value is None:
      value = default
    if value is None:
      raise UserError(f"{self.where}: lacks the field {name}")
    return value


def read_object(path: Path) -> dict[str, Any]:
  """Reads a JSON object; UserError where the file is missing, too large or something else."""
  try:
    if path.exists() and check_file(str(path), path).stat().st_size > _LARGEST_FILE:
      raise UserError(f"{path}: {path.stat().st_size:,} bytes are no config")
    content = path.read_bytes()
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror}") from None
  return parse_object(content, f"{path}:")


def parse_object(content: bytes, what: str) -> dict[str, Any]:
  """Parses a JSON object in UTF-8; UserError, `what` and the fault, where it is something else."""
  try:
    value = json.loads(content.decode("utf-8"))
  except (ValueError, RecursionError):
    raise UserError(f"{what} not JSON") from None
  if not isinstance(value, dict):
    raise UserError(f"{what} not a JSON object")
  return value
