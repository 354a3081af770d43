"""Rules that a field's own declaration states: its type, choices, range and owner."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from of_jax import user_code
from of_jax.config import own_code, values
from of_jax.config.declare import Owner
from of_jax.config.fields import fields, get, hints
from of_jax.config.rules.check import Check
from of_jax.config.sections import Config
from of_jax.errors import UserError, nearest


def default(path: str) -> Any:
  """The declared default of a field."""
  return fields()[path].default


def owner(path: str) -> Owner:
  """The declared owner of a field that has one."""
  found: Owner = fields()[path].metadata["owner"]
  return found


def check_types(config: Config) -> None:
  """Raises UserError unless every field has a value of its type and choices, finite if a number."""
  for path, field in fields().items():
    value, hint = get(config, path), hints(path)[field.name]
    try:
      values.coerce(value, hint)
    except TypeError:
      raise UserError(f"config.{path}={value!r}: not {values.describe(hint)}") from None
    choices = values.choices(field, hint)
    if own_code.takes(path) and own_code.is_own(path, value):
      own_code.check(path, value)
    elif choices and value is not None and value not in choices:
      raise UserError(f"config.{path}={value}: not one of {', '.join(choices)}"
                      + _meant(path, str(value), choices))
    for number in _numbers(value):
      if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"config.{path}={number}: not a finite number")


# Other people's words for what a field chooses from, in lower case, without signs between letters.
_SYNONYMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "model.block": {"pre": ("prenorm", "preln", "prelayernorm", "prermsnorm"),
                    "op": ("outlierprotected", "opblock")},
    "model.norm": {"layer": ("layernorm", "ln"), "rms": ("rmsnorm",)},
    "model.positions": {"rotary": ("rope",)},
    "optim.name": {"adamw": ("adam",)}}


def _meant(path: str, value: str, choices: Collection[str]) -> str:
  """Ends a message about a value that is none of a field's choices with the one that was meant."""
  word = "".join(c for c in value.lower() if c.isalnum())
  for choice, others in _SYNONYMS.get(path, {}).items():
    if word in others and choice in choices:
      return f"; did you mean {choice}?"
  return nearest(value, choices)


def check_ranges(config: Config) -> None:
  """Raises UserError unless every number lies in the ranges of its field."""
  for path, field in fields().items():
    for allowed in field.metadata["ranges"]:
      for number in _numbers(get(config, path)):
        if number not in allowed:
          raise UserError(f"config.{path}={number}: {allowed.fault(number)}")


def check_sizes(config: Config) -> None:
  """Raises UserError for a number so large that nothing should be computed with it."""
  for path, field in fields().items():
    for allowed in field.metadata["ranges"]:
      for number in _numbers(get(config, path)):
        if abs(number) > allowed.most:
          raise UserError(f"config.{path}={number}: {allowed.fault(number)}")


def _numbers(value: Any) -> list[Any]:
  """The numbers that a value is, or is a list of."""
  return [one for one in (value if isinstance(value, tuple) else (value,))
          if isinstance(one, (int, float)) and not isinstance(one, bool)]


def check_owners(config: Config, section: str, check: Check,
                 chosen: Mapping[str, Collection[str]] | None = None) -> None:
  """Checks that no field of a section is set whose owner is not chosen.

  Args:
    config: resolved.
    section: the section's name.
    check: raises what fails.
    chosen: the path of an owner -> all choices that are made of it, if more than its value.
  """
  part = getattr(config, section)
  for field in dataclasses.fields(part):
    owned = field.metadata["owner"]
    if owned is None or not owned.choices:
      continue
    choice = get(config, owned.path)
    is_read = {*owned.choices} & {choice, *(chosen or {}).get(owned.path, ())}
    *others, last = owned.choices
    named = f"{', '.join(others)} or {last}" if others else last
    # A user's own variant may read whatever it likes.
    check(bool(is_read) or user_code.is_own(choice)
          or getattr(part, field.name) in (field.default, None),
          f"{section}.{field.name}",
          f"is part of {owned.path}={named} and does nothing in {choice}")
