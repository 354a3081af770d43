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
# Relative accuracy of a median that falls among values closer to one another than this: 2^-14.
UNRESOLVED_BITS = 9
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

  def __init__(self, x_BxTxD: jax.Array, first_BxT: jax.Array,
               weights_BxT: jax.Array | None = None):
    """Args:
      x_BxTxD: activations.
      first_BxT: true for the tokens at position 0.
      weights_BxT: 1 for a token that counts, 0 for padding; default all 1.
    """
    self.raw_BxTxD = x_BxTxD.astype(jnp.float32)
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

  # Sums over groups are products with 0 and 1, far faster than masked sums. 0 x inf is NaN, so a
  # token too large to be squared takes no part, and makes its own group's sums NaN, no other's.
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
    sums_GxN = jnp.einsum("gbt,btn->gn", self.groups_GxBxT.astype(jnp.float32), values_BxTxN,
                          precision=jax.lax.Precision.HIGHEST)
    return jnp.where(self.is_within_G[:, None], sums_GxN, jnp.nan)

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


def _median(bits_BxTxD: jax.Array) -> jax.Array:
  """The median over the last axis of non-negative float32 values given as bits, to 2^-14 relative.

  The median of an even width is the mean of the two middle values, as NumPy has it. No sort:
  non-negative floats are ordered like their bit patterns, so the bits of the lower middle value
  are found from the top, two at a time, with one pass over the width for each pair. What is left
  is a bucket of relative width 2^-14; the answer is its largest member, exact where no other
  value lies in the bucket.
  """
  width = bits_BxTxD.shape[-1]
  lower_rank = (width - 1) // 2
  start_BxT = jnp.zeros(bits_BxTxD.shape[:-1], jnp.int32)

  def next_two_bits(i: jax.Array, bucket: Any) -> Any:
    start_BxT, below_end_BxT = bucket
    unit = jnp.int32(1) << (29 - 2 * i)
    bounds = [start_BxT + k * unit for k in (1, 2, 3)]
    for bound, below in zip(bounds, _counts_below(bits_BxTxD, bounds)):
      is_end = below > lower_rank
      start_BxT = jnp.where(is_end, start_BxT, bound)
      below_end_BxT = jnp.where(is_end, jnp.minimum(below_end_BxT, below), below_end_BxT)
    return start_BxT, below_end_BxT

  start_BxT, below_end_BxT = jax.lax.fori_loop(
      0, (31 - UNRESOLVED_BITS) // 2, next_two_bits,
      (start_BxT, jnp.full_like(start_BxT, width)))
  below_BxTxD = bits_BxTxD < (start_BxT + (1 << UNRESOLVED_BITS))[..., None]
  lower_BxT = jnp.max(fold(jnp.maximum, jnp.where(below_BxTxD, bits_BxTxD, 0)), -1)
  above_BxT = jnp.min(fold(jnp.minimum, jnp.where(below_BxTxD, LARGEST_BITS, bits_BxTxD)), -1)
  # An odd width has one middle value; so has an even one with both in the bucket.
  is_one = (below_end_BxT > lower_rank + 1) | bool(width % 2)
  upper_BxT = jnp.where(is_one, lower_BxT, above_BxT)
  # Halved before the sum, which would overflow for the largest floats.
  return as_float(lower_BxT) / 2 + as_float(upper_BxT) / 2


def _counts_below(bits_BxTxD: jax.Array, bounds: list[jax.Array]) -> list[jax.Array]:
  """How many values lie below each of three bounds, in one pass: ten bits of a sum for each."""
  packed = [(bits_BxTxD < bound[..., None]).astype(jnp.int32) << (10 * i)
            for i, bound in enumerate(bounds)]
  folded = fold(jnp.add, functools.reduce(jnp.add, packed))
  width, lanes = bits_BxTxD.shape[-1], folded.shape[-1]
  chunks = next(n for n in range(1, lanes + 1) if lanes % n == 0 and width // n < 1024)
  sums = jnp.sum(folded.reshape(*folded.shape[:-1], chunks, lanes // chunks), -1)
  # Unpacked within the reduction's own loop, the sum would be taken three times.
  sums = jax.lax.optimization_barrier(sums)
  return [jnp.sum((sums >> (10 * i)) & 1023, -1) for i in range(3)]


def fold(combine: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """The last axis cut in up to eight and combined: vector arithmetic, which on CPU takes a
  fraction of the time of XLA's reduction over a contiguous axis."""
  pieces = next(n for n in range(8, 0, -1) if x.shape[-1] % n == 0)
  return functools.reduce(combine, jnp.split(x, pieces, -1))


def as_float(bits: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(bits, jnp.float32)
