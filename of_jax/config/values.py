"""Values of config fields by their type hints: from text, from JSON, and in words."""

import dataclasses
import re
import types
import typing
from typing import Any, Literal

from of_jax import variants
from of_jax.config import traits

_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def _optional(hint: Any) -> tuple[Any, bool]:
  """(type, may be None) of `T` or `T | None`."""
  # A Literal with None is the older kind of union.
  if typing.get_origin(hint) in (types.UnionType, typing.Union):
    inner = [a for a in typing.get_args(hint) if a is not types.NoneType]
    return inner[0], True
  return hint, False


def _item(hint: Any) -> Any:
  """Converter of the text of one item of a list."""
  return _float if typing.get_args(hint)[0] is float else str.strip


def whole(text: str) -> int | None:
  """Reads a whole number that is not negative; None where the text is none.

  Digits are 0 to 9 alone: those of other scripts, and what is written above or below, are none.
  """
  return int(text) if re.fullmatch("[0-9]{1,400}", text) else None


def _float(text: str) -> float:
  """Reads a number; ValueError where the text is none, or has other digits than 0 to 9."""
  if not text.isascii():
    raise ValueError
  return float(text)


def parse(text: str, hint: Any) -> Any:
  """The value that `text` means for a field of type `hint`; ValueError if none."""
  hint, optional = _optional(hint)
  if optional and text.lower() in ("none", "null"):
    return None
  if hint is bool:
    if text.lower() not in _BOOLS:
      raise ValueError
    return _BOOLS[text.lower()]
  if hint is int:
    number = whole(text.replace("_", "").removeprefix("-"))
    if number is None:
      raise ValueError
    return -number if text.startswith("-") else number
  if hint is float:
    return _float(text)
  if typing.get_origin(hint) is tuple:
    return tuple(_item(hint)(part) for part in text.split(",") if part.strip())
  return text


def coerce(value: Any, hint: Any) -> Any:
  """`value` as the field's type where no information is lost; TypeError otherwise."""
  hint, optional = _optional(hint)
  if optional and value is None:
    return None
  if typing.get_origin(hint) is tuple:
    if not isinstance(value, (list, tuple)):
      raise TypeError
    return tuple(coerce(item, typing.get_args(hint)[0]) for item in value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError:
      raise TypeError from None
  kind = str if typing.get_origin(hint) is Literal else hint
  if type(value) is not kind:
    raise TypeError
  return value


def describe(hint: Any) -> str:
  """Says what a field of type `hint` takes, for a message."""
  hint, optional = _optional(hint)
  if typing.get_origin(hint) is tuple:
    text = ("a list of numbers, as in 1,2.5" if _item(hint) is _float
            else "a list of names, as in a,b")
  else:
    text = {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "a text")
  return text + (" or none" if optional else "")


def choices(field: dataclasses.Field[Any], hint: Any) -> tuple[str, ...]:
  """The values to choose from: files of the field's folder, or a Literal's; empty for any."""
  folder, trait = field.metadata["folder"], field.metadata["trait"]
  if folder and trait:
    return ("auto", *(name for name in variants.names(folder)
                      if getattr(traits.of(folder, name), trait)))
  if folder:
    return variants.names(folder)
  hint, _ = _optional(hint)
  return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def show(value: Any) -> str:
  """`value` as one would type it."""
  if isinstance(value, tuple):
    return ",".join(str(item) for item in value)
  return "none" if value is None else str(value)
