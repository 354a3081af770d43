"""Sufficient statistics of one activation site: what adds up over tokens, batches and devices.

Enters: x [batch, time, width] in any float type. Leaves: float32 arrays of at most
[groups, width], which `merge` combines exactly over micro-batches and evaluation batches; under
jit a sum over a sharded batch is already the sum over the mesh. Finished metrics do not add up,
so they are made last, by of_jax.telemetry.metrics.

Every statistic is kept for two groups of tokens, those at position 0 and all others: one massive
first token can change kurtosis ninefold, and it cannot be subtracted afterwards without losing
the digits of the rest.
"""

import jax
import jax.numpy as jnp

Statistics = dict[str, jax.Array]

FIRST, REST = 0, 1
# Relative accuracy of a median that falls among values closer to one another than this: 2^-14.
_UNRESOLVED_BITS = 9


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
  centred_BxTxD = x_BxTxD - jnp.mean(x_BxTxD, -1, keepdims=True)
  size_BxTxD = jnp.abs(x_BxTxD)
  max_BxT = jnp.max(size_BxTxD, -1)
  ratio_BxT = max_BxT / median_over_width(size_BxTxD)

  def of_group(member_BxT: jax.Array) -> Statistics:
    inside = member_BxT[..., None]

    def total(values: jax.Array) -> jax.Array:
      # `where`, not a product: padding and the other group may hold infinities.
      return jnp.sum(jnp.where(inside if values.ndim == 3 else member_BxT, values, 0), (0, 1))

    return {
        "count": jnp.sum(member_BxT, dtype=jnp.float32),
        "sum": total(x_BxTxD),
        "sum_square": total(jnp.square(x_BxTxD)),
        "sum_square_centred": total(jnp.square(centred_BxTxD)),
        "sum_max_over_median": total(ratio_BxT),
        "max_abs": jnp.max(jnp.where(member_BxT, max_BxT, -jnp.inf)),
    }

  first, rest = of_group(first_BxT & counts_BxT), of_group(~first_BxT & counts_BxT)
  return {name: jnp.stack([first[name], rest[name]]) for name in first}


def median_over_width(size_BxTxD: jax.Array) -> jax.Array:
  """The median of non-negative float32 values over the last axis, to 2^-14 relative.

  The median of an even width is the mean of the two middle values, as NumPy has it. No sort:
  non-negative floats are ordered like their bit patterns, so the bits of the lower middle value
  are found from the top, two at a time, with one pass over the width for each pair. What is left
  is a bucket of relative width 2^-14; the answer is its largest member, exact where no other
  value lies in the bucket.
  """
  width = size_BxTxD.shape[-1]
  lower_rank = (width - 1) // 2
  bits_BxTxD = jax.lax.bitcast_convert_type(size_BxTxD, jnp.int32)

  def next_two_bits(i: jax.Array, found_BxT: jax.Array) -> jax.Array:
    unit = jnp.int32(1) << (29 - 2 * i)
    counts = _counts_below(bits_BxTxD, [found_BxT + k * unit for k in (1, 2, 3)])
    for count in counts:
      found_BxT += unit * (count <= lower_rank)
    return found_BxT

  start_BxT = jnp.zeros(size_BxTxD.shape[:-1], jnp.int32)
  pairs = (31 - _UNRESOLVED_BITS) // 2
  found_BxT: jax.Array = jax.lax.fori_loop(0, pairs, next_two_bits, start_BxT)
  end_BxT = found_BxT + (1 << _UNRESOLVED_BITS)
  below_BxTxD = bits_BxTxD < end_BxT[..., None]
  lower_BxT = jnp.max(jnp.where(below_BxTxD, size_BxTxD, 0), -1)
  if width % 2:
    return lower_BxT
  above_BxT = jnp.min(jnp.where(below_BxTxD, jnp.inf, size_BxTxD), -1)
  upper_BxT = jnp.where(jnp.sum(below_BxTxD, -1) > lower_rank + 1, lower_BxT, above_BxT)
  # Halved before the sum, which would overflow for the largest floats.
  return lower_BxT / 2 + upper_BxT / 2


def _counts_below(bits_BxTxD: jax.Array, bounds: list[jax.Array]) -> list[jax.Array]:
  """How many values lie below each of three bounds, in one pass: ten bits of a sum for each."""
  width = bits_BxTxD.shape[-1]
  chunks = next(n for n in range(1, width + 1) if width % n == 0 and width // n < 1024)
  bits = bits_BxTxD.reshape(*bits_BxTxD.shape[:-1], chunks, width // chunks)
  packed = jnp.zeros_like(bits)
  for i, bound in enumerate(bounds):
    packed += (bits < bound[..., None, None]).astype(jnp.int32) << (10 * i)
  total = jnp.sum(packed, -1)
  return [jnp.sum((total >> (10 * i)) & 1023, -1) for i in range(3)]


def merge(a: Statistics, b: Statistics) -> Statistics:
  """The statistics of both sets of tokens together."""
  return {name: jnp.maximum(a[name], b[name]) if name.startswith("max_") else a[name] + b[name]
          for name in a}
