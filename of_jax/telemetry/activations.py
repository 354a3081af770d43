"""One site's activations as the families of metrics read them.

Enters: x [batch, time, width] in any float type. What several families need (sizes, medians,
centred values, sums by group) is computed here, once.

Every statistic is kept for two groups of tokens, those at position 0 and all others: one massive
first token can change kurtosis ninefold, and it cannot be subtracted afterwards without losing
the digits of the rest.

How it works. A probe makes one `Activations` of its site while the step is traced. Everything in it
is a cached property: what no family reads is never traced, and what several read is traced once.
Sizes are compared as integers, since the bits of |x| are ordered as |x| is and NaN is above all, so
that a maximum is NaN exactly where there is one. A sum over tokens (`totals`) is taken row by row
and then over rows, so that few roundings follow one another; a token too large to be squared is
selected away and makes its own group NaN, never the other. The median of a token is found without
sorting: the 31 bits of the middle value are decided from the top by counting how many |x| lie below
a bound. The counts are over int8 codes, 8 bits of the value at a time, of which a vector register
holds four times as many as floats; after 22 bits the rest of the bucket is told by its largest
member. The arrays are folded before they are reduced (see of_jax.xla.reductions), so that one read
of memory serves a loop over vectors and not one over numbers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.xla.reductions import as_bits, as_float, fold

FIRST, REST = 0, 1
# Of a float's 31 bits below the sign, a median is found from the upper ones, in stages of at most
# 8: its relative accuracy, where it falls among values closer to one another than this, is 2^-14.
_STAGES = (8, 8, 6)
UNRESOLVED_BITS = 31 - sum(_STAGES)
# Half the largest number whose square is a float32: x less a mean is at most twice as large.
LARGEST_SQUARED = float(np.finfo(np.float32).max) ** 0.5 / 2
# The smallest mean of squares that is sure to 1e-6, at an RMS of 2^-52, 2.2e-16. Squares below
# float32's smallest normal number, 2^-126, are lost: at worst that much of every entry.
SMALLEST_MEAN_SQUARE = 2.0 ** -104
# And the smallest number that is sure to 1e-6 of itself although halves and differences are lost.
SMALLEST = SMALLEST_MEAN_SQUARE
_FARTHEST = np.uint32(np.iinfo(np.uint32).max)
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
    return as_bits(self.raw_BxTxD)

  @functools.cached_property
  def max_bits_BxT(self) -> jax.Array:
    """The largest |x| of each token, as bits."""
    return jnp.max(fold(_larger, 0, self.raw_BxTxD), -1)

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
    return _median(self.raw_BxTxD)

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
    """Mean of each token over the width; of one whose squares are not finite, anything."""
    return jnp.mean(self.raw_BxTxD, -1)

  def totals(self, each: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """[groups, N]: sums over tokens of each(*arrays), entry by entry.

    A token too large to be squared makes its own group's sums NaN, and takes no part in others.

    Args:
      each: of arrays cut to some of the tokens, [batch, tokens, ...], to [batch, tokens, N].
      arrays: [batch, time, ...], such as `raw_BxTxD`.
    """
    # Row by row first: one sum over all tokens would round more. The barrier keeps them two.
    sums_GxBxN = jax.lax.optimization_barrier(
        self.sums_of_rows(self.groups_GxBxT & self.within_BxT, each, *arrays))
    return jnp.where(self.is_within_G[:, None], jnp.sum(sums_GxBxN, 1), jnp.nan)

  def sums_of_rows(self, groups_GxBxT: jax.Array, each: Callable[..., jax.Array],
                   *arrays: jax.Array) -> jax.Array:
    """[groups, batch, N]: sums over the tokens of each row, of each group, as in `totals`."""

    # A selection, not a product with 0 and 1: what is left out may be infinite. It is also what
    # XLA's library of reductions does not know, and so leaves in one loop with the additions.
    def add(total: jax.Array | float, is_in_BxTx1: jax.Array, *parts: jax.Array) -> jax.Array:
      return jnp.where(is_in_BxTx1, total + each(*parts), total)

    sums = []
    for group, is_in_BxT in enumerate(groups_GxBxT):
      parts = (is_in_BxT[..., None], *arrays)
      if group == FIRST and self._starts_rows:
        parts = tuple(part[:, :1] for part in parts)
      sums.append(jnp.sum(fold(add, 0., *parts, axis=1, least=4), 1))
    return jnp.stack(sums)

  def largest(self, values_BxTxN: jax.Array) -> jax.Array:
    """[groups]: the largest of values computed of `x_BxTxD`; -inf for a group without tokens."""
    largest_BxT = jnp.max(values_BxTxN, -1)
    largest_G = jnp.max(jnp.where(self.groups_GxBxT, largest_BxT, -jnp.inf), (1, 2))
    return jnp.where(self.is_within_G, largest_G, jnp.nan)

  @functools.cached_property
  def sum_GxD(self) -> jax.Array:
    """Sums over tokens of x."""
    return self.totals(lambda x: x, self.raw_BxTxD)

  @functools.cached_property
  def sum_square_GxD(self) -> jax.Array:
    """Sums over tokens of x^2."""
    return self.totals(jnp.square, self.raw_BxTxD)

  @functools.cached_property
  def sum_square_centred_GxD(self) -> jax.Array:
    """Sums over tokens of the squares of x less each token's mean over the width."""
    return self.totals(lambda x, mean: jnp.square(x - mean), self.raw_BxTxD,
                       self.mean_BxT[..., None])

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


def _median(x_BxTxD: jax.Array) -> jax.Array:
  """The median over the last axis of |x|, x float32, to 2^-14 relative.

  The median of an even width is the mean of the two middle values, as NumPy has it. No sort:
  non-negative floats are ordered like their bit patterns, so the bits of the lower middle value
  are found from the top, one by one, with a pass over the width for each. A pass reads 8 of the
  bits, since four times as many fit into a vector then: of a stage after the first, those that
  share the bits found before. What is left is a bucket of relative width 2^-14; the answer is its
  largest member, exact where no other value lies in the bucket.
  """
  width = x_BxTxD.shape[-1]
  lower_rank = (width - 1) // 2
  every_BxT = jnp.full(x_BxTxD.shape[:-1], width, jnp.int32)
  start_BxT, below_end_BxT, shift = jnp.zeros_like(every_BxT), every_BxT, 31
  for bits in _STAGES:
    shift -= bits
    # What lies outside of the bucket stays on its side of every bound. The difference may wrap
    # around where the bucket is one of NaNs, and is right all the same.
    middle_BxT = start_BxT + (128 << shift)
    code = jnp.clip((as_bits(x_BxTxD) - middle_BxT[..., None]) >> shift, -128, 127)
    found_BxT, below_end_BxT = _search(code.astype(jnp.int8), bits, lower_rank, below_end_BxT)
    start_BxT += found_BxT << shift
  end_BxT = start_BxT + (1 << UNRESOLVED_BITS)

  # Upwards from the bucket's end and around, the nearest beyond is first, the nearest below last.
  def way(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(as_bits(x) - end_BxT[..., None], jnp.uint32)

  last_BxT = jnp.max(fold(lambda last, x: jnp.maximum(last, way(x)), 0, x_BxTxD), -1)
  first_BxT = jnp.min(fold(lambda first, x: jnp.minimum(first, way(x)), _FARTHEST, x_BxTxD), -1)
  lower_BxT, above_BxT = (jax.lax.bitcast_convert_type(found_BxT, jnp.int32) + end_BxT
                          for found_BxT in (last_BxT, first_BxT))
  # An odd width has one middle value; so has an even one with both in the bucket.
  is_one = (below_end_BxT > lower_rank + 1) | bool(width % 2)
  upper_BxT = jnp.where(is_one, lower_BxT, above_BxT)
  # Halved before the sum, which would overflow for the largest floats.
  return as_float(lower_BxT) / 2 + as_float(upper_BxT) / 2


def _search(codes_BxTxD: jax.Array, bits: int, rank: int, below_end_BxT: jax.Array
            ) -> tuple[jax.Array, jax.Array]:
  """The code of a rank over the last axis, from 0, and how many are at most as large.

  Args:
    codes_BxTxD: int8, codes less 128; those of interest are below 2^bits.
    bits: at most 8.
    rank: from 0.
    below_end_BxT: how many lie below 2^bits.
  """
  codes_BxTxD = jax.lax.optimization_barrier(codes_BxTxD)
  count_type = jnp.int16 if codes_BxTxD.shape[-1] <= np.iinfo(np.int16).max else jnp.int32

  def bound_of(code: jax.Array | int) -> jax.Array:
    bound: jax.Array = jnp.asarray(code - 128, jnp.int8)
    return bound

  # Both results in one array, so that a bit is found in one loop: the count above the code's bits.
  def next_bit(i: jax.Array, bucket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    state_BxT, bound_BxT = bucket

    # As narrow as the codes: a fold has no more pieces than an int8 counts.
    def count(total: jax.Array | int, codes: jax.Array) -> jax.Array:
      below: jax.Array = codes < bound_BxT[..., None]
      return total + below.astype(jnp.int8)

    below_BxTxN = fold(count, 0, codes_BxTxD, least=32)
    if below_BxTxN.shape[-1] < codes_BxTxD.shape[-1]:
      # Written in between, so that both are sums of bytes: 4 times 16 is still one.
      below_BxTxN = fold(jnp.add, 0, jax.lax.optimization_barrier(below_BxTxN), least=32, most=4)
    below_BxT = jnp.sum(below_BxTxN, -1, dtype=count_type).astype(jnp.int32)
    bit = jnp.left_shift(1, bits - 1 - i).astype(jnp.int32)
    state_BxT = jnp.where(below_BxT > rank, below_BxT << 8 | state_BxT & 255, state_BxT | bit)
    # Computed here and not where it is compared: within the loop over the width it would keep the
    # compiler from vectors.
    return state_BxT, bound_of(state_BxT & 255 | bit >> 1)

  state_BxT = below_end_BxT << 8
  state_BxT, _ = jax.lax.fori_loop(
      0, bits, next_bit, (state_BxT, jnp.full_like(state_BxT, (1 << (bits - 1)) - 128, jnp.int8)))
  return state_BxT & 255, state_BxT >> 8


def _larger(largest: jax.Array | int, x: jax.Array) -> jax.Array:
  return jnp.maximum(largest, as_bits(x))
