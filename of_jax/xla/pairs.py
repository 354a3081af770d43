"""Numbers of 48 bits as sums of two float32, for sums in which large terms cancel.

The second number of a pair is what the first lacks (Dekker 1971; Knuth's two-sum). A compiler may
fuse a multiplication with an addition, which then are rounded once: so a product is made of four of
halves, each of them exact, and means the same fused or not. No platform needs float64 for it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# The sign, the exponent and 12 of the 24 bits of a float32: the rest has 12 too.
_UPPER_HALF = np.int32(-1 << 12)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
  """Arrays of one shape that stand for high + low.

  Attributes:
    high: float32, the sum rounded.
    low: float32, what rounding took.
  """

  high: jax.Array
  low: jax.Array

  @classmethod
  def exact(cls, x: jax.Array) -> "Pair":
    """Takes float32 as it is."""
    return cls(x, jnp.zeros_like(x))

  @classmethod
  def difference(cls, a: jax.Array, b: jax.Array) -> "Pair":
    """Subtracts float32 arrays, exactly."""
    return cls(*_two_sum(a, -b))

  @classmethod
  def product(cls, a: jax.Array, b: jax.Array) -> "Pair":
    """Multiplies float32 arrays, exactly but for what is below the smallest float32."""
    (a_upper, a_lower), (b_upper, b_lower) = _halves(a), _halves(b)
    high, first = _two_sum(a_upper * b_upper, a_upper * b_lower)
    high, second = _two_sum(high, a_lower * b_upper)
    return cls(*_two_sum(high, a_lower * b_lower + (first + second)))

  def __add__(self, other: "Pair") -> "Pair":
    high, rest = _two_sum(self.high, other.high)
    return Pair(*_two_sum(high, rest + (self.low + other.low)))

  def __mul__(self, other: "Pair") -> "Pair":
    exact = Pair.product(self.high, other.high)
    crossed = self.high * other.low + self.low * other.high
    return Pair(*_two_sum(exact.high, exact.low + crossed))

  def __truediv__(self, by: jax.Array) -> "Pair":
    quotient = self.high / by
    back = Pair.product(quotient, by)
    return Pair(*_two_sum(quotient, ((self.high - back.high) - back.low + self.low) / by))

  def times(self, power_of_two: float) -> "Pair":
    """Multiplies by a power of two, exactly."""
    return Pair(self.high * power_of_two, self.low * power_of_two)

  def where(self, condition: jax.Array, other: float) -> "Pair":
    """Puts `other` where the condition does not hold."""
    return Pair(jnp.where(condition, self.high, other), jnp.where(condition, self.low, 0))

  def total(self, *axes: int) -> "Pair":
    """Sums over axes, counted from 0, to 48 bits of the largest partial sum."""

    def add(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
      together = Pair(*a) + Pair(*b)
      return together.high, together.low

    zero = np.float32(0)
    return Pair(*jax.lax.reduce((self.high, self.low), (zero, zero), add, axes))

  def rounded(self) -> jax.Array:
    """Gives the nearest float32."""
    return self.high + self.low


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """a + b rounded, and what rounding took, exactly."""
  total = a + b
  of_b = total - a
  return total, (a - (total - of_b)) + (b - of_b)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Splits a float32 into two of 12 bits each, whose sum it is."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  upper = jax.lax.bitcast_convert_type(bits & _UPPER_HALF, jnp.float32)
  return upper, x - upper
