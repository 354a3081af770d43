"""Numbers with their derivatives: forward differentiation over arrays, to first or second order.

A `Jet` holds a value and its sparse derivatives by parameters, each an array that broadcasts
against the value. Laws are evaluated on jets, so that every law has exact derivatives.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Jet:
  """A value, its derivative by each parameter, and by each pair (i <= j); absent ones are zero.

  `second` says whether pairs are kept.
  """

  value: Floats
  first: Mapping[int, Floats] = dataclasses.field(default_factory=dict)
  pairs: Mapping[Pair, Floats] = dataclasses.field(default_factory=dict)
  second: bool = False

  def through(self, value: Floats, slope: Floats, curvature: Floats) -> "Jet":
    """Applies a function of one number, given by its value and two derivatives here."""
    first = {i: slope * d for i, d in self.first.items()}
    pairs = {}
    if self.second:
      for i, j in _pairs_of(self.first):
        pairs[i, j] = curvature * self.first[i] * self.first[j]
        if (i, j) in self.pairs:
          pairs[i, j] = pairs[i, j] + slope * self.pairs[i, j]
    return Jet(value, first, pairs, self.second)

  def __add__(self, other: "Jet") -> "Jet":
    return Jet(self.value + other.value, _sum(self.first, other.first),
               _sum(self.pairs, other.pairs), self.second or other.second)

  def __neg__(self) -> "Jet":
    return Jet(-self.value, {i: -d for i, d in self.first.items()},
               {p: -d for p, d in self.pairs.items()}, self.second)

  def __sub__(self, other: "Jet") -> "Jet":
    return self + -other

  def __mul__(self, other: "Jet") -> "Jet":
    first = _sum({i: d * other.value for i, d in self.first.items()},
                 {i: d * self.value for i, d in other.first.items()})
    second = self.second or other.second
    pairs: dict[Pair, Floats] = {}
    if second:
      for i, j in _pairs_of({**self.first, **other.first}):
        found = [a * b for a, b in (
            (self.pairs.get((i, j)), other.value), (self.value, other.pairs.get((i, j))),
            (self.first.get(i), other.first.get(j)), (self.first.get(j), other.first.get(i)))
            if a is not None and b is not None]
        if found:
          pairs[i, j] = sum(found[1:], found[0])
    return Jet(self.value * other.value, first, pairs, second)

  def __truediv__(self, other: "Jet") -> "Jet":
    return self * other.power(-1.0)

  def __pow__(self, exponent: "Jet") -> "Jet":
    if not exponent.first and exponent.value.ndim == 0:
      return self.power(float(exponent.value))
    return (exponent * self.log()).exp()

  def power(self, exponent: float) -> "Jet":
    """Raises to a constant."""
    x = self.value
    if exponent == 0:
      return Jet(np.ones_like(x), second=self.second)
    return self.through(x ** exponent, exponent * x ** (exponent - 1),
                        exponent * (exponent - 1) * x ** (exponent - 2))

  def log(self) -> "Jet":
    """Takes the natural logarithm."""
    return self.through(np.log(self.value), 1 / self.value, -1 / self.value ** 2)

  def exp(self) -> "Jet":
    """Takes the exponential."""
    value = np.exp(self.value)
    return self.through(value, value, value)

  def sqrt(self) -> "Jet":
    """Takes the square root."""
    return self.power(0.5)


def constant(value: float | Floats) -> Jet:
  """Makes a jet that no parameter changes."""
  return Jet(np.asarray(value, np.float64))


def _sum(a: Mapping[int, Floats] | Mapping[Pair, Floats],
         b: Mapping[int, Floats] | Mapping[Pair, Floats]) -> dict:  # type: ignore[type-arg]
  total = dict(a)
  for key, value in b.items():
    total[key] = total[key] + value if key in total else value  # type: ignore[index]
  return total


def _pairs_of(first: Mapping[int, Floats]) -> list[Pair]:
  indices = sorted(first)
  return [(i, j) for n, i in enumerate(indices) for j in indices[n:]]
