"""Sparsity of hidden units: how many are active."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.activations import REST, Activations
from of_jax.telemetry.family import Family, Statistics, group
from of_jax.xla.reductions import as_bits

KIND = "activations"
SITES = ("mlp_hidden",)
EVERY = 0
METRICS = {
    "active_fraction_token": (
        "full", "mean over tokens of the share of units that are not 0", "share", "0 to 1",
        "Wild & Anderson 2024, 2407.07848"),
    "active_fraction_sequence": (
        "full", "mean over sequences of the share of units not 0 at least once in it", "share",
        "0 to 1", "Wild & Anderson 2024, 2407.07848"),
    "active_fraction_batch": (
        "full", "share of units not 0 at least once in all that is measured", "share", "0 to 1",
        "Wild & Anderson 2024, 2407.07848"),
    "dead_fraction": (
        "full", "1 - active_fraction_batch", "share", "0 to 1",
        "Wild & Anderson 2024, 2407.07848"),
    "active_fraction_percentiles": (
        "full", "5, 25, 50, 75 and 95 % points, over units, of the share of tokens for which a "
        "unit is not 0; linear between units", "share", "0 to 1",
        "Wild & Anderson 2024, 2407.07848 (percentiles of what, it does not say)"),
}

_PERCENTILES = (5, 25, 50, 75, 95)


class Activity(Family):
  """Counts of active units. A NaN or infinity of a counted token makes its group's counts NaN."""

  def statistics(self, a: Activations) -> Statistics:
    # How often each unit was active in each sequence.
    times_GxBxD = a.sums_of_rows(
        # 0 for either zero, and 1 for all else: in arithmetic that becomes vectors.
        a.groups_GxBxT, lambda x: jnp.minimum(as_bits(x), 1).astype(jnp.float32), a.raw_BxTxD)
    is_finite_G = ~jnp.any(a.groups_GxBxT & ~jnp.isfinite(a.max_BxT), (1, 2))
    times_GxBxD = jnp.where(is_finite_G[:, None, None], times_GxBxD, jnp.nan)
    counts_BxT, rest_BxT = a.counts_BxT, a.groups_GxBxT[REST]
    return {"count": a.count_G, "active": jnp.sum(times_GxBxD, 1),
            "sequences_all": _number(jnp.any(counts_BxT, 1)),
            "sequences_rest": _number(jnp.any(rest_BxT, 1)),
            "active_sequences_all": jnp.sum(_some(jnp.sum(times_GxBxD, 0)), 0),
            "active_sequences_rest": jnp.sum(_some(times_GxBxD[REST]), 0)}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    chosen = "rest" if no_first else "all"
    active = group(s, "active", no_first, -2)
    rate = active / group(s, "count", no_first)[..., None]
    return {
        "active_fraction_token": jnp.mean(rate, -1),
        "active_fraction_sequence": (
            jnp.mean(s[f"active_sequences_{chosen}"], -1) / s[f"sequences_{chosen}"]),
        "active_fraction_batch": jnp.mean(_some(rate), -1),
        "dead_fraction": jnp.mean(1 - _some(rate), -1),
        "active_fraction_percentiles": _percentiles(rate),
    }


def _number(flags: jax.Array) -> jax.Array:
  return jnp.sum(flags, dtype=jnp.float32)


def _some(times: jax.Array) -> jax.Array:
  """Gives 1 where a count is above 0, 0 where it is 0, and NaN where it is NaN."""
  return jnp.where(jnp.isnan(times), times, (times > 0).astype(jnp.float32))


def _percentiles(rate_D: jax.Array) -> jax.Array:
  """Computes quantiles over the last axis, as NumPy does by default."""
  width = rate_D.shape[-1]
  ordered = jax.lax.top_k(-rate_D, width)[0] * -1
  points = []
  for percent in _PERCENTILES:
    place = percent / 100 * (width - 1)
    lower = min(int(place), max(width - 2, 0))
    upper = min(lower + 1, width - 1)
    share = place - lower
    points.append(ordered[..., lower] + share * (ordered[..., upper] - ordered[..., lower]))
  # A NaN has no place in the order.
  return jnp.where(jnp.any(jnp.isnan(rate_D), -1, keepdims=True), jnp.nan, jnp.stack(points, -1))
