"""Moments of neurons over tokens, and which neurons are the largest."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.activations import Activations
from of_jax.telemetry.family import UNDEFINED, Family, Statistics, group

KIND = "activations"
SITES = ()
EVERY = 0
METRICS = {
    "kurtosis": (
        "basic", "mean_j(s2_j^2) / mean_j(s2_j)^2", "ratio", "1 to d",
        "He et al. 2024, 2405.19279, Sec. 2"),
    "kurtosis_centred": (
        "basic", "kurtosis after subtracting each token's mean over the width", "ratio", "1 to d",
        "He et al. 2024, 2405.19279, Fig. 15"),
    "rms": ("basic", "sqrt(mean X^2)", "activation", "0 and above",
            "He et al. 2024, 2405.19279, Sec. 2"),
    "max_abs": ("basic", "max |X|", "activation", "0 and above", "Sun et al. 2024, 2402.17762"),
    "input_correlation": (
        "basic", "mean off-diagonal of X X^T / d, X scaled to mean square 1", "correlation",
        "-1/(n-1) to 1", "He et al. 2024, 2405.19279, Eq. 4"),
    "top_neurons": (
        "full", "the five j of the largest s2_j, the largest first", "index", "0 to d-1",
        "Macocco et al. 2025, 2503.21718 (by another rule)"),
    "top_neuron_share": (
        "full", "s2_j / sum_j(s2_j) of top_neurons", "share", "0 to 1", "this project"),
    "top_neuron_mean": (
        "full", "mean_t(X_tj) / sqrt(s2_j) of top_neurons: the sign of each and how constant it is",
        "ratio", "-1 to 1", "this project"),
}

_TOP = 5


class Moments(Family):
  """Metrics of s2_j, the mean square of each neuron."""

  def statistics(self, a: Activations) -> Statistics:
    return {"count": a.count_G, "sum": a.sum_GxD, "sum_square": a.sum_square_GxD,
            "sum_square_centred": a.sum_square_centred_GxD, "max_abs": a.max_G}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    count, largest = (group(s, name, no_first) for name in ("count", "max_abs"))
    total, square, square_centred = (
        group(s, name, no_first, -2) for name in ("sum", "sum_square", "sum_square_centred"))
    values, top = _largest(square, min(_TOP, square.shape[-1]))
    sum_of_top = jnp.take_along_axis(total, top, -1)
    is_known = jnp.isfinite(jnp.sum(square, -1)) & (values[..., 0] > 0)
    return {
        "kurtosis": kurtosis(square),
        "kurtosis_centred": kurtosis(square_centred),
        "rms": jnp.sqrt(jnp.mean(square / count[..., None], -1)),
        "max_abs": largest,
        "input_correlation": _input_correlation(count, total, square),
        "top_neurons": jnp.where(is_known[..., None], top, UNDEFINED),
        # Over the largest, so that the sum cannot overflow.
        "top_neuron_share": (values / values[..., :1]
                             / jnp.sum(square / values[..., :1], -1, keepdims=True)),
        "top_neuron_mean": (sum_of_top / jnp.sqrt(values)) / jnp.sqrt(count)[..., None],
    }


def _largest(values_D: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Finds the largest non-negative values of the last axis, in order, and their places, of
  equals the first; NaN, and no place, where there is a NaN. Faster on CPU than to sort."""
  width = values_D.shape[-1]
  places_D = jax.lax.broadcasted_iota(jnp.int32, values_D.shape, values_D.ndim - 1)

  def next_largest(left_D: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value = jnp.max(left_D, -1, keepdims=True)
    place = jnp.min(jnp.where(left_D == value, places_D, width), -1, keepdims=True)
    return jnp.where(places_D == place, -1, left_D), (value[..., 0], place[..., 0])

  _, found = jax.lax.scan(next_largest, values_D, length=count)
  values, places = (jnp.moveaxis(part, 0, -1) for part in found)
  return values, places


def kurtosis(square_D: jax.Array) -> jax.Array:
  """Computes mean(v^2) / mean(v)^2 over the last axis, of sums of squares."""
  # Scaled to a largest entry of 1, so that the fourth power can neither overflow nor vanish.
  share = square_D / jnp.max(square_D, -1, keepdims=True)
  return jnp.mean(jnp.square(share), -1) / jnp.square(jnp.mean(share, -1))


def _input_correlation(count: jax.Array, total: jax.Array, square: jax.Array) -> jax.Array:
  # sum_{a != b} <x_a, x_b> = |sum_a x_a|^2 - sum_a |x_a|^2, over n (n - 1) times the mean square
  # norm. Both sums are scaled by the largest neuron's, so that the square cannot overflow.
  largest = jnp.max(square, -1, keepdims=True)
  scaled_sum = total / jnp.sqrt(largest)
  ratio = jnp.sum(jnp.square(scaled_sum), -1) / jnp.sum(square / largest, -1)
  pairs = jnp.where(count > 1, count - 1, jnp.nan)
  return (ratio - 1) / pairs
