"""Squares of the gradients with respect to activations, kept without keeping a gradient.

A slot is an array of zeros [layers, width] beside a site's activations. The forward pass does
nothing with it; the backward pass leaves in place of its gradient the sum over tokens of the
squared gradient of the activations. So `jax.grad` with respect to the slots gives what the families
of kind `gradients` are made of, and no gradient of an activation outlives its layer.
"""

from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.telemetry import registry
from of_jax.telemetry.family import Statistics
from of_jax.xla.reductions import fold, plus

# site -> `sum_square` [layers, width].
Slots = Mapping[str, Statistics]

# The smallest square that float32 holds to all its bits.
_SMALLEST = float(np.finfo(np.float32).tiny)


@jax.custom_vjp
def leave_squares(x_BxTxD: jax.Array, slot_D: jax.Array) -> jax.Array:
  """Gives x, whose gradient's squares, summed over tokens, become the gradient of `slot_D`."""
  del slot_D
  return x_BxTxD


def _forward(x_BxTxD: jax.Array, slot_D: jax.Array) -> tuple[jax.Array, None]:
  return leave_squares(x_BxTxD, slot_D), None


def _backward(_: None, g_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
  squares_BxNxD = fold(lambda total, g: plus(total, _square(g.astype(jnp.float32))), 0.,
                       g_BxTxD, axis=1, least=4)
  # Row by row first, as in Activations.totals.
  return g_BxTxD, jnp.sum(jax.lax.optimization_barrier(jnp.sum(squares_BxNxD, 1)), 0)


def _square(g: jax.Array) -> jax.Array:
  """Squares; what would be lost to float32 stays above 0, and so can be told from 0."""
  return jnp.maximum(jnp.square(g), jnp.where(g == 0, 0, _SMALLEST))


leave_squares.defvjp(_forward, _backward)


class SlotObserver:
  """Observes the shapes of slots: keeps zeros [width] of each site that is watched."""

  def __init__(self, sites: Collection[str]):
    self._sites = sites

  def __call__(self, site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None
               ) -> Statistics | None:
    del first_BxT
    zeros_D = jnp.zeros(x_BxTxD.shape[-1], jnp.float32)
    return {"sum_square": zeros_D} if site in self._sites else None


def leave_squares_in(slots: Slots) -> Callable[[str, jax.Array, jax.Array | int], jax.Array]:
  """Makes what to pass as a model's `intervene`, so that gradients of the slots are squares."""

  def intervene(site: str, x_BxTxD: jax.Array, layer: jax.Array | int) -> jax.Array:
    if site not in slots:
      return x_BxTxD
    # Layers count from 1, and what is outside of them is layer 0.
    slot_D = jax.lax.dynamic_index_in_dim(
        slots[site]["sum_square"], jnp.maximum(layer - 1, 0), keepdims=False)
    left: jax.Array = leave_squares(x_BxTxD, slot_D)
    return left

  return intervene


def statistics_of_squares(plan: Mapping[str, tuple[str, ...]], squares: Slots,
                          weights_BxT: jax.Array) -> dict[str, dict[str, Statistics]]:
  """Makes of the gradients of the slots each family's statistics: site -> family -> statistics.

  Args:
    plan: site -> families of kind `gradients`.
    squares: the gradients of the slots, of the whole batch.
    weights_BxT: of the batch's tokens, 0 for padding.
  """
  tokens = jnp.sum(weights_BxT > 0, dtype=jnp.float32)
  return {site: {name: registry.load(name).of_gradients(left["sum_square"], tokens)
                 for name in plan[site]} for site, left in squares.items()}
