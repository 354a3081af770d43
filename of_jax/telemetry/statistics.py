"""Sufficient statistics of one activation site: what adds up over tokens, batches and devices.

Enters: x [batch, time, width] in any float type. Leaves: float32 arrays of at most
[groups, width], which `merge` combines exactly over micro-batches and evaluation batches; under
jit a sum over a sharded batch is already the sum over the mesh. Finished metrics do not add up,
so they are made last, by of_jax.telemetry.metrics.

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

Statistics = dict[str, jax.Array]

FIRST, REST = 0, 1
# Relative accuracy of a median that falls among values closer to one another than this: 2^-14.
_UNRESOLVED_BITS = 9
# Half the largest number whose square is a float32: x less a mean is at most twice as large.
_LARGEST_SQUARED = float(np.finfo(np.float32).max) ** 0.5 / 2
_LARGEST_BITS = np.iinfo(np.int32).max
_MINUS_INFINITY = int(np.float32(-np.inf).view(np.int32))


def sufficient_statistics(x_BxTxD: jax.Array, first_BxT: jax.Array,
                          weights_BxT: jax.Array | None = None) -> Statistics:
  """What the basic metrics need of one site.

  Args:
    x_BxTxD: activations.
    first_BxT: true for the tokens at position 0.
    weights_BxT: 1 for a token that counts, 0 for padding; default all 1.

  Returns:
    name -> float32 array whose first axis is the group (FIRST, REST):
    `count` [2], tokens; `sum`, `sum_square` and `sum_square_centred` [2, width], sums over tokens
    of x, x^2 and (x - mean over the width)^2; `sum_max_over_median` [2], of max_j |x_j| /
    median_j |x_j|; `max_abs` [2], -inf for a group without tokens.
  """
  x_BxTxD = x_BxTxD.astype(jnp.float32)
  counts_BxT = jnp.ones(first_BxT.shape, bool) if weights_BxT is None else weights_BxT > 0
  groups_GxBxT = jnp.stack([first_BxT & counts_BxT, ~first_BxT & counts_BxT])
  bits_BxTxD = jax.lax.bitcast_convert_type(jnp.abs(x_BxTxD), jnp.int32)
  max_bits_BxT = jnp.max(_fold(jnp.maximum, bits_BxTxD), -1)
  max_BxT = _float(max_bits_BxT)
  ratio_BxT = max_BxT / _median(bits_BxTxD)

  # Sums over groups are products with 0 and 1, far faster than masked sums. 0 x inf is NaN, so a
  # token too large to be squared takes no part, and makes its own group's sums NaN, no other's.
  within_BxT = max_BxT <= _LARGEST_SQUARED
  is_within_G = ~jnp.any(groups_GxBxT & ~within_BxT, (1, 2))
  x_BxTxD = jnp.where(within_BxT[..., None], x_BxTxD, 0)
  centred_BxTxD = x_BxTxD - jnp.mean(x_BxTxD, -1, keepdims=True)

  def totals(values: jax.Array) -> jax.Array:
    sums_GxD = jnp.einsum("gbt,btd->gd", groups_GxBxT.astype(jnp.float32), values,
                          precision=jax.lax.Precision.HIGHEST)
    return jnp.where(is_within_G[:, None], sums_GxD, jnp.nan)

  return {
      "count": jnp.sum(groups_GxBxT, (1, 2), dtype=jnp.float32),
      "sum": totals(x_BxTxD),
      "sum_square": totals(jnp.square(x_BxTxD)),
      "sum_square_centred": totals(jnp.square(centred_BxTxD)),
      # `where`, not a product: the other group may hold infinities.
      "sum_max_over_median": jnp.sum(jnp.where(groups_GxBxT, ratio_BxT, 0), (1, 2)),
      # Over bits, among which a NaN is the largest; below 0 there is -inf, for a group without
      # tokens.
      "max_abs": _float(jnp.max(jnp.where(groups_GxBxT, max_bits_BxT, _MINUS_INFINITY), (1, 2))),
  }


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
      0, (31 - _UNRESOLVED_BITS) // 2, next_two_bits,
      (start_BxT, jnp.full_like(start_BxT, width)))
  below_BxTxD = bits_BxTxD < (start_BxT + (1 << _UNRESOLVED_BITS))[..., None]
  lower_BxT = jnp.max(_fold(jnp.maximum, jnp.where(below_BxTxD, bits_BxTxD, 0)), -1)
  above_BxT = jnp.min(_fold(jnp.minimum, jnp.where(below_BxTxD, _LARGEST_BITS, bits_BxTxD)), -1)
  # An odd width has one middle value; so has an even one with both in the bucket.
  is_one = (below_end_BxT > lower_rank + 1) | bool(width % 2)
  upper_BxT = jnp.where(is_one, lower_BxT, above_BxT)
  # Halved before the sum, which would overflow for the largest floats.
  return _float(lower_BxT) / 2 + _float(upper_BxT) / 2


def _counts_below(bits_BxTxD: jax.Array, bounds: list[jax.Array]) -> list[jax.Array]:
  """How many values lie below each of three bounds, in one pass: ten bits of a sum for each."""
  packed = [(bits_BxTxD < bound[..., None]).astype(jnp.int32) << (10 * i)
            for i, bound in enumerate(bounds)]
  folded = _fold(jnp.add, functools.reduce(jnp.add, packed))
  width, lanes = bits_BxTxD.shape[-1], folded.shape[-1]
  chunks = next(n for n in range(1, lanes + 1) if lanes % n == 0 and width // n < 1024)
  sums = jnp.sum(folded.reshape(*folded.shape[:-1], chunks, lanes // chunks), -1)
  # Unpacked within the reduction's own loop, the sum would be taken three times.
  sums = jax.lax.optimization_barrier(sums)
  return [jnp.sum((sums >> (10 * i)) & 1023, -1) for i in range(3)]


def _fold(combine: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """The last axis cut in up to eight and combined: vector arithmetic, which on CPU takes a
  fraction of the time of XLA's reduction over a contiguous axis."""
  pieces = next(n for n in range(8, 0, -1) if x.shape[-1] % n == 0)
  return functools.reduce(combine, jnp.split(x, pieces, -1))


def _float(bits: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def merge(a: Statistics, b: Statistics) -> Statistics:
  """The statistics of both sets of tokens together."""
  return {name: jnp.maximum(a[name], b[name]) if name.startswith("max_") else a[name] + b[name]
          for name in a}
