"""Gradients of the loss with respect to activations, by neuron."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.families.moments import kurtosis
from of_jax.telemetry.family import Family, Statistics, where_squared

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
  """Statistics by neuron; the metrics are over the neurons of a layer."""

  def of_gradients(self, sum_square_LxD: jax.Array, tokens: jax.Array) -> Statistics:
    return {"sum_square": sum_square_LxD, "count": jnp.full(sum_square_LxD.shape[:1], tokens)}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    del no_first
    mean_square = jnp.mean(s["sum_square"] / s["count"][..., None], -1)
    # The sum is 0 for gradients of 0 alone, see of_jax.telemetry.slots.
    rms = jnp.where(mean_square == 0, 0, where_squared(mean_square, jnp.sqrt(mean_square)))
    return {"activation_gradient_kurtosis": kurtosis(s["count"], s["sum_square"]),
            "activation_gradient_rms": rms}
