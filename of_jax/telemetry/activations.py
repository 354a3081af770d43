"""One site's activations as the families of metrics read them.

Enters: x [batch, time, width] in any float type. What several families need (sizes, medians,
centred values, sums by group) is computed here, once.

Every statistic is kept for two groups of tokens, those at position 0 and all others: one massive
first token can change kurtosis ninefold, and it cannot be subtracted afterwards without losing
the digits of the rest.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FIRST, REST = 0, 1
# Of a float's 31 bits below the sign, a median is found from 15 upper and 7 lower ones: its
# relative accuracy, where it falls among values closer to one another than this, is 2^-14.
_LOWER_BITS, UNRESOLVED_BITS = 7, 9
# Half the largest number whose square is a float32: x less a mean is at most twice as large.
LARGEST_SQUARED = float(np.finfo(np.float32).max) ** 0.5 / 2
LARGEST_BITS = np.iinfo(np.int32).max
MINUS_INFINITY = int(np.float32(-np.inf).view(np.int32))


class Activations:
  """The activations of one site, and what is computed of them once for all families.

  What is computed is kept at its first use, so read it outside of `jax.lax` loops: a value made
  inside one may not leave it.

  Attributes:
    raw_BxTxD: in float32.
    groups_GxBxT: true for the tokens that count, by group (FIRST, REST).
  """

  def __init__(self, x_BxTxD: jax.Array, first_BxT: jax.Array | None = None,
               weights_BxT: jax.Array | None = None):
    """Args:
      x_BxTxD: activations.
      first_BxT: true for the tokens at position 0; default the first of every row.
      weights_BxT: 1 for a token that counts, 0 for padding; default all 1.
    """
    self.raw_BxTxD = x_BxTxD.astype(jnp.float32)
    self._starts_rows = first_BxT is None
    first_BxT = first_of_rows(first_BxT, x_BxTxD.shape[:2])
    counts_BxT = jnp.ones(first_BxT.shape, bool) if weights_BxT is None else weights_BxT > 0
    self.groups_GxBxT = jnp.stack([first_BxT & counts_BxT, ~first_BxT & counts_BxT])

  @functools.cached_property
  def counts_BxT(self) -> jax.Array:
    """True for the tokens that count."""
    return jnp.any(self.groups_GxBxT, 0)

  @functools.cached_property
  def count_G(self) -> jax.Array:
    """Tokens."""
    return jnp.sum(self.groups_GxBxT, (1, 2), dtype=jnp.float32)

  @functools.cached_property
  def bits_BxTxD(self) -> jax.Array:
    """|x| as int32, which orders non-negative floats as they are ordered."""
    return jax.lax.bitcast_convert_type(jnp.abs(self.raw_BxTxD), jnp.int32)

  @functools.cached_property
  def max_bits_BxT(self) -> jax.Array:
    """The largest |x| of each token, as bits."""
    return jnp.max(fold(jnp.maximum, self.bits_BxTxD), -1)

  @functools.cached_property
  def max_BxT(self) -> jax.Array:
    """The largest |x| of each token; NaN, whose bits are the largest, if there is one."""
    return as_float(self.max_bits_BxT)

  @functools.cached_property
  def max_G(self) -> jax.Array:
    """The largest |x|; -inf, below 0, for a group without tokens."""
    # Over bits, among which a NaN is the largest.
    bits = jnp.where(self.groups_GxBxT, self.max_bits_BxT, MINUS_INFINITY)
    return as_float(jnp.max(bits, (1, 2)))

  @functools.cached_property
  def median_BxT(self) -> jax.Array:
    """The median of |x| of each token, to 2^-14."""
    return _median(self.bits_BxTxD)

  # Sums over groups are products with 0 and 1, and 0 x inf is NaN, so a token too large to be
  # squared takes no part, and makes its own group's sums NaN, no other's.
  @functools.cached_property
  def within_BxT(self) -> jax.Array:
    """True for the tokens whose squares are finite."""
    within_BxT: jax.Array = self.max_BxT <= LARGEST_SQUARED
    return within_BxT

  @functools.cached_property
  def is_within_G(self) -> jax.Array:
    """True for the groups all of whose tokens have finite squares."""
    return ~jnp.any(self.groups_GxBxT & ~self.within_BxT, (1, 2))

  @functools.cached_property
  def x_BxTxD(self) -> jax.Array:
    """x, and 0 for tokens whose squares are not finite."""
    return jnp.where(self.within_BxT[..., None], self.raw_BxTxD, 0)

  @functools.cached_property
  def mean_BxT(self) -> jax.Array:
    """Of each token, over the width."""
    return jnp.mean(self.x_BxTxD, -1)

  @functools.cached_property
  def centred_BxTxD(self) -> jax.Array:
    """x less each token's mean over the width."""
    return self.x_BxTxD - self.mean_BxT[..., None]

  def totals(self, values_BxTxN: jax.Array) -> jax.Array:
    """[groups, N]: sums over tokens of what was computed of `x_BxTxD`."""
    # Row by row first: one sum over all tokens would round more. The barrier keeps them two.
    sums_GxBxN = jax.lax.optimization_barrier(self.sums_of_rows(values_BxTxN))
    return jnp.where(self.is_within_G[:, None], jnp.sum(sums_GxBxN, 1), jnp.nan)

  def sums_of_rows(self, values_BxTxN: jax.Array) -> jax.Array:
    """[groups, batch, N]: sums over the tokens of each row of finite values."""
    if not self._starts_rows:
      return jnp.einsum("gbt,btn->gbn", self.groups_GxBxT.astype(jnp.float32), values_BxTxN,
                        precision=jax.lax.Precision.HIGHEST)
    # Which token is whose is known: a sum that needs no copy of the values.
    first_BxT, rest_BxT = self.groups_GxBxT
    return jnp.stack([values_BxTxN[:, 0] * first_BxT[:, :1],
                      jnp.sum(values_BxTxN * rest_BxT[..., None], 1)])

  def largest(self, values_BxTxN: jax.Array) -> jax.Array:
    """[groups]: the largest of values computed of `x_BxTxD`; -inf for a group without tokens."""
    largest_BxT = jnp.max(values_BxTxN, -1)
    largest_G = jnp.max(jnp.where(self.groups_GxBxT, largest_BxT, -jnp.inf), (1, 2))
    return jnp.where(self.is_within_G, largest_G, jnp.nan)

  @functools.cached_property
  def sum_GxD(self) -> jax.Array:
    """Sums over tokens of x."""
    return self.totals(self.x_BxTxD)

  @functools.cached_property
  def sum_square_GxD(self) -> jax.Array:
    """Sums over tokens of x^2."""
    return self.totals(jnp.square(self.x_BxTxD))

  @functools.cached_property
  def sum_square_centred_GxD(self) -> jax.Array:
    """Sums over tokens of the squares of `centred_BxTxD`."""
    return self.totals(jnp.square(self.centred_BxTxD))

  @functools.cached_property
  def sum_ratio_G(self) -> jax.Array:
    """Sums over tokens of the largest |x| over the median |x|."""
    ratio_BxT = self.max_BxT / self.median_BxT
    # `where`, not a product: the other group may hold infinities.
    return jnp.sum(jnp.where(self.groups_GxBxT, ratio_BxT, 0), (1, 2))


def first_of_rows(first_BxT: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
  """True for the tokens at position 0; None stands for the first of every row."""
  if first_BxT is not None:
    return first_BxT
  return jnp.broadcast_to(jnp.arange(shape[1]) == 0, shape)


def _median(bits_BxTxD: jax.Array) -> jax.Array:
  """The median over the last axis of non-negative float32 values given as bits, to 2^-14 relative.

  The median of an even width is the mean of the two middle values, as NumPy has it. No sort:
  non-negative floats are ordered like their bit patterns, so the bits of the lower middle value
  are found from the top, one by one, with a pass over the width for each. Passes read half of the
  bits, and go at twice the speed: first the upper, then the lower of those that share them. What
  is left is a bucket of relative width 2^-14; the answer is its largest member, exact where no
  other value lies in the bucket.
  """
  width = bits_BxTxD.shape[-1]
  lower_rank = (width - 1) // 2
  every_BxT = jnp.full(bits_BxTxD.shape[:-1], width, jnp.int32)
  start_BxT, below_end_BxT = _search(
      (bits_BxTxD >> 16).astype(jnp.int16), 15, lower_rank, every_BxT)
  start_BxT <<= 16
  # What lies outside of the bucket stays on its side of it.
  within = jnp.clip((bits_BxTxD - start_BxT[..., None]) >> UNRESOLVED_BITS, -1, 1 << _LOWER_BITS)
  found_BxT, below_end_BxT = _search(
      within.astype(jnp.int16), _LOWER_BITS, lower_rank, below_end_BxT)
  end_BxT = start_BxT + ((found_BxT + 1) << UNRESOLVED_BITS)
  below_BxTxD = bits_BxTxD < end_BxT[..., None]
  lower_BxT = jnp.max(fold(jnp.maximum, jnp.where(below_BxTxD, bits_BxTxD, 0)), -1)
  above_BxT = jnp.min(fold(jnp.minimum, jnp.where(below_BxTxD, LARGEST_BITS, bits_BxTxD)), -1)
  # An odd width has one middle value; so has an even one with both in the bucket.
  is_one = (below_end_BxT > lower_rank + 1) | bool(width % 2)
  upper_BxT = jnp.where(is_one, lower_BxT, above_BxT)
  # Halved before the sum, which would overflow for the largest floats.
  return as_float(lower_BxT) / 2 + as_float(upper_BxT) / 2


def _search(values_BxTxD: jax.Array, bits: int, rank: int, below_end_BxT: jax.Array
            ) -> tuple[jax.Array, jax.Array]:
  """The int32 value of a rank over the last axis of int16 values, and how many are at most as
  large.

  Args:
    values_BxTxD: those of interest are from 0 to 2^bits - 1.
    bits: at most 15.
    rank: from 0.
    below_end_BxT: how many lie below 2^bits.
  """
  values_BxTxD = jax.lax.optimization_barrier(values_BxTxD)

  def next_bit(i: jax.Array, bucket: Any) -> Any:
    start_BxT, below_end_BxT = bucket
    # Computed within the loop over the width, a bound would keep the compiler from vectors.
    bound_BxT = jax.lax.optimization_barrier((start_BxT | (1 << (bits - 1 - i))).astype(jnp.int16))
    is_below = (values_BxTxD < bound_BxT[..., None]).astype(jnp.int16)
    below_BxT = jnp.sum(fold(jnp.add, is_below, 16).astype(jnp.int32), -1, dtype=jnp.int32)
    is_end = below_BxT > rank
    return (jnp.where(is_end, start_BxT, bound_BxT.astype(jnp.int32)),
            jnp.where(is_end, below_BxT, below_end_BxT))

  found: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(
      0, bits, next_bit, (jnp.zeros_like(below_end_BxT), below_end_BxT))
  return found


def fold(combine: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, most: int = 8
         ) -> jax.Array:
  """The last axis cut in up to `most` and combined: vector arithmetic, which on CPU takes a
  fraction of the time of XLA's reduction of integers over a contiguous axis."""
  pieces = next(n for n in range(most, 0, -1) if x.shape[-1] % n == 0)
  return functools.reduce(combine, jnp.split(x, pieces, -1))


def as_float(bits: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(bits, jnp.float32)
