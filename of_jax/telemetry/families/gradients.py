"""Gradients of the loss with respect to activations, by neuron."""

from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp

from of_jax.telemetry.families.moments import kurtosis
from of_jax.telemetry.family import Family, Statistics
from of_jax.xla.reductions import fold, plus

KIND = "gradients"
SITES = ()
EVERY = 0
METRICS = {
    "activation_gradient_kurtosis": (
        "full", "mean_j(g2_j^2) / mean_j(g2_j)^2, g2_j the mean over tokens of (dloss/dX_tj)^2",
        "ratio", "1 to d", "He et al. 2024, 2405.19279, Sec. 2, of gradients"),
    "activation_gradient_rms": (
        "full", "sqrt(mean (dloss/dX)^2), loss the mean over the batch's tokens",
        "1 / activation", "0 and above", "this project"),
}


class Gradients(Family):
  """The backward pass leaves `sum_square` [width] behind, in place of a slot's gradient."""

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    del no_first
    mean_square = s["sum_square"] / s["count"][..., None]
    return {"activation_gradient_kurtosis": kurtosis(s["sum_square"]),
            "activation_gradient_rms": jnp.sqrt(jnp.mean(mean_square, -1))}


@jax.custom_vjp
def leave_squares(x_BxTxD: jax.Array, slot_D: jax.Array) -> jax.Array:
  """x. Its gradient's squares, summed over tokens, become the gradient of `slot_D`."""
  del slot_D
  return x_BxTxD


def _forward(x_BxTxD: jax.Array, slot_D: jax.Array) -> tuple[jax.Array, None]:
  return leave_squares(x_BxTxD, slot_D), None


def _backward(_: None, g_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
  squares_BxNxD = fold(lambda total, g: plus(total, jnp.square(g.astype(jnp.float32))), 0.,
                       g_BxTxD, axis=1, least=4)
  # Row by row first, as in Activations.totals.
  return g_BxTxD, jnp.sum(jax.lax.optimization_barrier(jnp.sum(squares_BxNxD, 1)), 0)


leave_squares.defvjp(_forward, _backward)


class SlotObserver:
  """An observer that keeps of a site what shall hold its squares: zeros."""

  def __init__(self, sites: Collection[str]):
    self._sites = sites

  def __call__(self, site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None
               ) -> Statistics | None:
    del first_BxT
    zeros_D = jnp.zeros(x_BxTxD.shape[-1], jnp.float32)
    return {"sum_square": zeros_D} if site in self._sites else None


def leave_squares_in(slots: Mapping[str, Statistics]
                     ) -> Callable[[str, jax.Array, jax.Array | int], jax.Array]:
  """What to pass as a model's `intervene`; slots are site -> `sum_square` [layers, width]."""

  def intervene(site: str, x_BxTxD: jax.Array, layer: jax.Array | int) -> jax.Array:
    if site not in slots:
      return x_BxTxD
    # Layers count from 1, and what is outside of them is layer 0.
    slot_D = jax.lax.dynamic_index_in_dim(
        slots[site]["sum_square"], jnp.maximum(layer - 1, 0), keepdims=False)
    left: jax.Array = leave_squares(x_BxTxD, slot_D)
    return left

  return intervene


def statistics_of_squares(squares: Mapping[str, Statistics], weights_BxT: jax.Array
                          ) -> dict[str, dict[str, Statistics]]:
  """The family's statistics of each site, from the gradients of the slots."""
  tokens = jnp.sum(weights_BxT > 0, dtype=jnp.float32)
  return {site: {"gradients": {**left, "count": jnp.full(left["sum_square"].shape[:1], tokens)}}
          for site, left in squares.items()}
