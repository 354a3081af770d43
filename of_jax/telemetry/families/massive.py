"""The largest entry over the median of all."""

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.telemetry.activations import REST, SMALLEST, Activations
from of_jax.telemetry.family import Family, Statistics, group
from of_jax.xla.reductions import as_float

KIND = "activations"
SITES = ()
EVERY = 100
METRICS = {
    "massive_ratio": (
        "full", "max |X| / median |X| over the whole site; of several evaluation batches the mean "
        "of their medians, each weighted by its tokens", "ratio", "1 and above",
        "Sun et al. 2024, 2402.17762"),
}

# Counts are kept in base 4096, since the entries of a batch may be more than an int32 counts.
_BASE_BITS = 12


class Massive(Family):
  """Exact median of a batch. It takes 32 passes over the site: it is measured apart, and,
  since medians do not add up, on the whole batch also where gradients accumulate."""

  adds_up = False

  def statistics(self, a: Activations) -> Statistics:
    counted_MxBxT = jnp.stack([a.counts_BxT, a.groups_GxBxT[REST]])
    bits_BxTxD = a.bits_BxTxD
    median_M = jax.lax.map(lambda counted_BxT: _median(bits_BxTxD, counted_BxT), counted_MxBxT)
    tokens_M = jnp.sum(counted_MxBxT, (1, 2), dtype=jnp.float32)
    weighted_M = jnp.where(tokens_M > 0, median_M * tokens_M, 0)
    return {"max_abs": a.max_G, "median_all": weighted_M[0], "count_all": tokens_M[0],
            "median_rest": weighted_M[1], "count_rest": tokens_M[1]}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    chosen = "rest" if no_first else "all"
    median = s[f"median_{chosen}"] / s[f"count_{chosen}"]
    ratio = group(s, "max_abs", no_first) / median
    return {"massive_ratio": jnp.where(median >= SMALLEST, ratio, jnp.nan)}


def _median(bits_BxTxD: jax.Array, counted_BxT: jax.Array) -> jax.Array:
  """Finds the median of non-negative floats given as bits: bit by bit, from the highest."""
  total = _normal(jnp.sum(counted_BxT, 1) * bits_BxTxD.shape[-1])
  # (total - 1) // 2, the rank of the lower middle value.
  high, low = total[0], total[1] - 1
  high, low = high + (low >> _BASE_BITS), low & ((1 << _BASE_BITS) - 1)
  rank = high >> 1, ((high & 1) << (_BASE_BITS - 1)) + (low >> 1)

  def below(bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    smaller_BxT = jnp.sum(bits_BxTxD < bound, -1) * counted_BxT
    return _normal(jnp.sum(smaller_BxT, 1))

  def next_bit(i: jax.Array, lower: jax.Array) -> jax.Array:
    candidate = lower | (jnp.int32(1) << (30 - i))
    return jnp.where(_at_most(below(candidate), rank), candidate, lower)

  lower = jax.lax.fori_loop(0, 31, next_bit, jnp.int32(0))
  # The upper middle value is the same one, unless no further value is as small.
  is_above = (bits_BxTxD > lower) & counted_BxT[..., None]
  above = jnp.min(jnp.where(is_above, bits_BxTxD, np.iinfo(np.int32).max))
  next_rank = rank[0] + ((rank[1] + 1) >> _BASE_BITS), (rank[1] + 1) & ((1 << _BASE_BITS) - 1)
  is_even = total[1] % 2 == 0
  differs = is_even & _at_most(below(lower + 1), next_rank)
  upper = jnp.where(differs, above, lower)
  return as_float(lower) / 2 + as_float(upper) / 2


def _normal(counts_B: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Adds up int32 counts as (multiples of 4096, rest)."""
  low = jnp.sum(counts_B & ((1 << _BASE_BITS) - 1))
  return jnp.sum(counts_B >> _BASE_BITS) + (low >> _BASE_BITS), low & ((1 << _BASE_BITS) - 1)


def _at_most(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> jax.Array:
  return (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))
