"""Moments of neurons over tokens, and which neurons are the largest."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.activations import SMALLEST_MEAN_SQUARE, Activations
from of_jax.telemetry.family import UNDEFINED, Family, Statistics, group, where_squared

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
    mean_square = jnp.mean(square / count[..., None], -1)
    return {
        "kurtosis": kurtosis(count, square),
        "kurtosis_centred": kurtosis(count, square_centred),
        "rms": jnp.where(largest == 0, 0, where_squared(mean_square, jnp.sqrt(mean_square))),
        "max_abs": largest,
        "input_correlation": where_squared(mean_square, _input_correlation(count, total, square)),
        **_top_neurons(count, total, square, mean_square)}


def _top_neurons(count: jax.Array, total: jax.Array, square: jax.Array, mean_square: jax.Array
                 ) -> dict[str, jax.Array]:
  """Lists the largest neurons, undefined behind the first whose squares are lost to float32."""
  values, top = _largest(square, min(_TOP, square.shape[-1]))
  sum_of_top = jnp.take_along_axis(total, top, -1)
  is_known = (jnp.isfinite(jnp.sum(square, -1)) & (values[..., 0] > 0)
              & (mean_square >= SMALLEST_MEAN_SQUARE))
  # Neurons that are 0 are the smallest in truth, unlike those whose squares are lost.
  smallest = SMALLEST_MEAN_SQUARE * count[..., None]
  is_lost = jnp.any((square < smallest) & ((square > 0) | (total != 0)), -1, keepdims=True)
  is_listed = is_known[..., None] & ((values >= smallest) | ~is_lost)
  # Over the largest, so that the sum cannot overflow.
  share = values / values[..., :1] / jnp.sum(square / values[..., :1], -1, keepdims=True)
  mean = (sum_of_top / jnp.sqrt(values)) / jnp.sqrt(count)[..., None]
  return {"top_neurons": jnp.where(is_listed, top, UNDEFINED),
          "top_neuron_share": jnp.where(is_listed, share, jnp.nan),
          "top_neuron_mean": jnp.where(is_listed, mean, jnp.nan)}


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


def kurtosis(count: jax.Array, square_D: jax.Array) -> jax.Array:
  """Computes mean(v^2) / mean(v)^2 over the last axis, of sums of squares of so many tokens."""
  # Scaled to a largest entry of 1, so that the fourth power can neither overflow nor vanish.
  largest = jnp.max(square_D, -1, keepdims=True)
  share = square_D / largest
  mean = jnp.mean(share, -1)
  return where_squared(mean * (largest[..., 0] / count),
                       jnp.mean(jnp.square(share), -1) / jnp.square(mean))


def _input_correlation(count: jax.Array, total: jax.Array, square: jax.Array) -> jax.Array:
  # sum_{a != b} <x_a, x_b> = |sum_a x_a|^2 - sum_a |x_a|^2, over n (n - 1) times the mean square
  # norm. Both sums are scaled by the largest neuron's, so that the square cannot overflow.
  largest = jnp.max(square, -1, keepdims=True)
  scaled_sum = total / jnp.sqrt(largest)
  ratio = jnp.sum(jnp.square(scaled_sum), -1) / jnp.sum(square / largest, -1)
  pairs = jnp.where(count > 1, count - 1, jnp.nan)
  return (ratio - 1) / pairs
