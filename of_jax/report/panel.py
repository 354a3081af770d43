"""A figure's axes and curves as data, which matplotlib and the page draw alike."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

Numbers = Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve. With `sizes`, from 0 to 1, it is drawn as dots of these sizes."""

  name: str
  x: Numbers
  y: Numbers
  sizes: Numbers | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
  """A pair of axes with its curves.

  Attributes:
    title: what is shown.
    x, y: axis labels, with units.
    definition: of what the y axis shows, a sentence.
    lines: at least one.
    log: whether the y axis is logarithmic.
  """

  title: str
  x: str
  y: str
  definition: str
  lines: tuple[Line, ...]
  log: bool = False


def plain(values: Any) -> list[float | None]:
  """Makes numbers of any kind ones for JSON; None where there is none or it is not finite."""
  return [finite(float(value)) if value is not None else None for value in values]


def finite(value: float) -> float | None:
  """Gives the number, or None where it is not finite."""
  return value if math.isfinite(value) else None
