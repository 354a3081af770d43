"""Decoupled weight decay by leaf, for every optimiser that adds it to its direction."""

from typing import Any

import jax
import optax

from of_jax.optim.matrices import leaves_like

Scalar = float | jax.Array


def add_decayed_weights(weight_decay: Scalar, mask: Any | None = None
                        ) -> optax.GradientTransformation:
  """Adds weight_decay k w to the updates, k by leaf.

  Args:
    weight_decay: coefficient.
    mask: k, a tree like the parameters: true is 1, false or 0 no decay. Default 1 everywhere; a
      tree that is but a prefix, or a function of the parameters, has truth values alone, as in
      optax.add_decayed_weights.
  """
  if mask is None or callable(mask) or all(
      isinstance(k, bool) for k in jax.tree.leaves(mask)):
    return optax.add_decayed_weights(weight_decay, mask)

  def add(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
      return updates
    return jax.tree.map(lambda g, w, k: g + weight_decay * k * w, updates, params,
                        leaves_like(params, mask))

  return optax.masked(optax.stateless(add), jax.tree.map(bool, mask))
