"""Families of metrics: sufficient statistics that add up, and metrics made of them.

Statistics are float32 arrays over the tokens of one site on this device's mesh; under jit a sum
over a sharded batch is already the sum over the mesh. Finished metrics do not add up over
micro-batches and evaluation batches, so they are made last.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.telemetry.activations import FIRST, REST, SMALLEST_MEAN_SQUARE, Activations

Statistics = dict[str, jax.Array]
# (queries [batch, some of the time, heads, head_dim], keys, number of the first query)
# -> float32 logits that the softmax reads, -inf where attention is not allowed, and its weights,
# both [batch, heads, queries, keys].
Weigh = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
# An integer cannot be NaN: the smallest one stands for undefined, and is null in JSON.
UNDEFINED = np.iinfo(np.int32).min


class Family:
  """Base of the families: one class a file of of_jax/telemetry/families, or a user's own.

  The file's constants declare the metrics and the kind, see of_jax.config.declared_metrics. A class
  defines `finish` and the one method that its kind is measured by: `statistics` for `activations`,
  `of_gradients` for `gradients`, `of_attention` for `attention`, `of_change` for `change`. A user's
  class is of activations, and declares `metrics` itself, see of_jax.telemetry.user.

  Attributes:
    adds_up: whether the merged statistics of micro-batches are those of the whole batch. A family
      that says no must be measured apart, which is then by one forward pass over the whole batch.
  """

  adds_up = True

  def statistics(self, a: Activations) -> Statistics:
    """Reduces one site's activations, of a family of kind `activations`.

    Returns:
      name -> float32 array. Those whose names begin with `max_` combine by the maximum, all
      others add up, unless the family has a `merge` of its own.
    """
    raise self._lacks("statistics", "activations")

  def of_gradients(self, sum_square_LxD: jax.Array, tokens: jax.Array) -> Statistics:
    """Takes one site's gradients, for a family of kind `gradients`.

    Args:
      sum_square_LxD: by layer and neuron, the sum over tokens of (dloss/dX)^2, loss the mean over
        the batch's tokens.
      tokens: how many count.

    Returns:
      name -> float32 array whose first axis is the layers, as `statistics` otherwise.
    """
    raise self._lacks("of_gradients", "gradients")

  def of_attention(self, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, weigh: Weigh,
                   first_BxT: jax.Array, counts_BxT: jax.Array) -> Statistics:
    """Reduces one layer's attention, for a family of kind `attention`.

    Args:
      q_BxTxHxK, k_BxSxGxK: as attention reads them; where there are more keys than queries, the
        first S - T are no token's.
      weigh: from queries and keys to weights, see of_jax.telemetry.queries for some at a time.
      first_BxT: true for the tokens at position 0.
      counts_BxT: true for the queries that count.

    Returns:
      as `statistics`.
    """
    raise self._lacks("of_attention", "attention")

  def of_change(self, before: Activations, after: Activations) -> Statistics:
    """Reduces what one step did to one site, for a family of kind `change`.

    Args:
      before, after: of the same tokens, those of a fixed batch, before and after a step.

    Returns:
      as `statistics`.
    """
    raise self._lacks("of_change", "change")

  def _lacks(self, method: str, kind: str) -> NotImplementedError:
    return NotImplementedError(f"{type(self).__name__}: a family of kind {kind} needs a method "
                               f"{method}, see of_jax.telemetry.Family")

  def merge(self, a: Statistics, b: Statistics) -> Statistics:
    """Combines the statistics of two sets of tokens."""
    return {name: jnp.maximum(a[name], b[name]) if name.startswith("max_") else a[name] + b[name]
            for name in a}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    """Makes metrics of statistics, which may have leading axes, of layers.

    Args:
      s: as `statistics` returns them.
      no_first: leave out position 0.

    Returns:
      id -> [leading axes], or for a list of values a layer [leading axes, values].
    """
    raise NotImplementedError


def group(s: Statistics, name: str, no_first: bool, axis: int = -1) -> jax.Array:
  """Takes of a statistic with the groups FIRST and REST on `axis` that of REST, or of both."""
  value = s[name]
  first, rest = jnp.take(value, FIRST, axis), jnp.take(value, REST, axis)
  if no_first:
    return rest
  return jnp.maximum(first, rest) if name.startswith("max_") else first + rest


def where_squared(mean_square: jax.Array, value: jax.Array) -> jax.Array:
  """Puts NaN in place of values made of squares that are too small for float32."""
  return jnp.where(mean_square >= SMALLEST_MEAN_SQUARE, value, jnp.nan)


def defined(value: jax.Array) -> jax.Array:
  """Puts NaN in place of infinities; leaves integers as they are."""
  return jnp.where(jnp.isfinite(value), value, jnp.nan) if jnp.issubdtype(
      value.dtype, jnp.floating) else value


def finish_all(family: Family, s: Statistics, has_no_first: bool) -> dict[str, Any]:
  """Makes every metric of a family, with and, where there is such a thing, without position 0."""
  found = {id_: defined(value) for id_, value in family.finish(s, no_first=False).items()}
  if has_no_first:
    found |= {id_ + "_no_first": defined(value)
              for id_, value in family.finish(s, no_first=True).items()}
  return found
