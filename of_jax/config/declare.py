"""Declares a field of a config in one place: default, words, choices, range and owner."""

import dataclasses
import math
from typing import Any

# Whole numbers are int32 wherever jax counts with them, and numbers are float32.
LARGEST_WHOLE, LARGEST_NUMBER = 2 ** 31 - 1, 1e30


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers x with low <= x <= high and above < x < below.

  Attributes:
    words: what is said of a number outside, but of one above `most`.
    low, high, above, below: its bounds, see there.
    also: numbers that belong to it as well.
    most: the largest size that makes sense at all: nothing is computed with what is larger.
  """

  words: str
  low: float = -math.inf
  high: float = math.inf
  above: float = -math.inf
  below: float = math.inf
  also: tuple[float, ...] = ()
  most: float = LARGEST_NUMBER

  def __contains__(self, number: float) -> bool:
    is_between = self.low <= number <= self.high and self.above < number < self.below
    return is_between and abs(number) <= self.most or number in self.also

  def fault(self, number: float) -> str:
    """Says what is wrong with a number outside."""
    if abs(number) <= self.most:
      return self.words
    return f"must be at {'most ' if number > 0 else 'least -'}{self.most:,.15g}"


ANY = Range("must be a number")
AT_LEAST_ONE = Range("must be at least 1", low=1, most=LARGEST_WHOLE)
AT_LEAST_TWO = Range("must be at least 2", low=2, most=LARGEST_WHOLE)
COUNT = Range("must not be negative", low=0, most=LARGEST_WHOLE)
POSITIVE = Range("must be above 0", above=0)
NOT_NEGATIVE = Range("must not be negative", low=0)
NEGATIVE = Range("must be negative", below=0)
FRACTION = Range("must lie between 0 and 1", low=0, high=1)
BELOW_ONE = Range("must be at least 0 and below 1", low=0, below=1)
INSIDE_ONE = Range("must lie above 0 and below 1", above=0, below=1)


@dataclasses.dataclass(frozen=True)
class Owner:
  """The choice that a field is part of.

  Attributes:
    path: the field that chooses.
    choices: the values of it that read the owned field; empty: the files of variants that it
      chooses from say so, each in its FIELDS.
  """

  path: str
  choices: tuple[str, ...] = ()


def field(default: Any, doc: str, folder: str = "", trait: str = "",
          ranges: Range | tuple[Range, ...] = (), owner: Owner | None = None) -> Any:
  """Declares one field of a section.

  Args:
    default: its value where nothing is said.
    doc: what it is, for `--help`.
    folder: the folder of files that its value chooses from, relative to the package.
    trait: with `folder`: it chooses from the files alone that have this trait, and "auto".
    ranges: what its value must satisfy where there is one; of a list, each item. Every number has
      some.
    owner: the choice without which the field must keep its default, for nothing reads it.
  """
  return dataclasses.field(default=default, metadata={
      "doc": doc, "folder": folder, "trait": trait,
      "ranges": (ranges,) if isinstance(ranges, Range) else ranges, "owner": owner})
