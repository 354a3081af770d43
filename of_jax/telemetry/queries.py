"""Attention's logits and weights, some queries at a time: all of them at once would not fit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from of_jax.telemetry.family import Statistics, Weigh

# Logits that one device holds at once.
_LOGITS_AT_ONCE = 2 ** 22
# (logits [batch, heads, queries, keys], weights of the same shape, which queries count
# [batch, queries]) -> statistics of these queries.
OfQueries = Callable[[jax.Array, jax.Array, jax.Array], Statistics]


def by_queries(of_queries: OfQueries, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, weigh: Weigh,
               counts_BxT: jax.Array) -> Statistics:
  """Computes statistics of one layer's attention, chunk by chunk of the queries.

  Args:
    of_queries: makes the statistics of a chunk.
    q_BxTxHxK, k_BxSxGxK, weigh, counts_BxT: see Family.of_attention.

  Returns:
    the same names, each with a leading axis of chunks.
  """
  (batch, steps, heads, _), keys = q_BxTxHxK.shape, k_BxSxGxK.shape[1]
  chunks = _number_of_chunks(batch * heads * keys, steps)
  length = steps // chunks

  def split(x: jax.Array) -> jax.Array:
    return x.reshape(batch, chunks, length, *x.shape[2:]).swapaxes(0, 1)

  def of_chunk(chunk: tuple[jax.Array, jax.Array, jax.Array]) -> Statistics:
    q, counts, start = chunk
    return of_queries(*weigh(q, k_BxSxGxK, start), counts)

  parts: Statistics = jax.lax.map(of_chunk, (
      split(q_BxTxHxK), split(counts_BxT), length * jnp.arange(chunks)))
  return parts


def _number_of_chunks(logits_a_query: int, steps: int) -> int:
  """The fewest equal chunks of the queries that keep a device's logits within the limit."""
  mesh = jax.sharding.get_abstract_mesh()
  wanted = logits_a_query * steps / (1 if mesh.empty else mesh.size) / _LOGITS_AT_ONCE
  return next(n for n in range(1, steps + 1) if steps % n == 0 and (n >= wanted or n == steps))
