"""Fourth standardised moments of entries: of a token's, and of all of a sequence's."""

import functools

import jax
import jax.numpy as jnp

from of_jax.telemetry.activations import REST, SMALLEST, Activations
from of_jax.telemetry.family import Family, Statistics, group
from of_jax.xla.reductions import fold

KIND = "activations"
SITES = ()
EVERY = 0
METRICS = {
    "kurtosis_pooled": (
        "full", "fourth central moment of all entries of a sequence over their variance squared "
        "(both divide by the count), mean over sequences", "ratio", "1 and above; gaussian 3",
        "Bondarenko et al. 2023, 2306.12929"),
    "excess_kurtosis_token": (
        "full", "mean over tokens of relu(mean_j(x_j^4) / std(x)^4 - 3), x not centred, std "
        "centred and divided by d - 1", "ratio", "0 and above; gaussian 0",
        "OSP 2025, 2506.19697 (its code)"),
}


class Pooled(Family):
  """Two kurtoses. Both follow from the sums of the first four powers of each token's entries.

  Powers of a token's entries are taken about its mean and over its largest entry, so that none
  overflows or vanishes and nothing cancels: moved to another centre m, with u = mean - m, they are
  sum (x - m)^2 = c2 + d u^2 and sum (x - m)^4 = c4 + 4 u c3 + 6 u^2 c2 + d u^4.
  """

  def statistics(self, a: Activations) -> Statistics:
    width = a.raw_BxTxD.shape[-1]
    largest_BxT = jnp.where(a.within_BxT & (a.max_BxT > 0), a.max_BxT, 1)
    mean_BxTx1, inverse_BxTx1 = a.mean_BxT[..., None], (1 / largest_BxT)[..., None]

    def sum_of(power: int) -> jax.Array:
      sums_BxTxN = fold(lambda total, x: total + ((x - mean_BxTx1) * inverse_BxTx1) ** power,
                        0., a.raw_BxTxD)
      # The selection keeps XLA's library of reductions from taking part of it.
      return jnp.sum(jnp.where(a.within_BxT[..., None], sums_BxTxN, 0), -1)

    c2_BxT, c3_BxT, c4_BxT = map(sum_of, (2, 3, 4))
    about = functools.partial(_about, c2_BxT, c3_BxT, c4_BxT, width)
    mean_BxT = a.mean_BxT / largest_BxT
    variance_BxT = c2_BxT / max(width - 1, 1) if width > 1 else jnp.full_like(c2_BxT, jnp.nan)
    excess_BxT = jnp.maximum(
        about(mean_BxT)[1] / width / jnp.square(variance_BxT) - 3, 0)
    excess_BxT = jnp.where(largest_BxT >= SMALLEST, excess_BxT, jnp.nan)

    # Of all tokens that count, and of those but at position 0.
    counts_CxBxT = jnp.stack([a.counts_BxT, a.groups_GxBxT[REST]])
    is_known_C = jnp.stack([jnp.all(a.is_within_G), a.is_within_G[REST]])
    # A sequence is centred at its own mean, and scaled by its largest entry.
    tokens_CxB = jnp.sum(counts_CxBxT, -1, dtype=jnp.float32)
    scale_CxB = jnp.max(jnp.where(counts_CxBxT, largest_BxT, 0), -1)
    share_CxBxT = largest_BxT / scale_CxB[..., None]
    mean_CxB = jnp.sum(jnp.where(counts_CxBxT, mean_BxT * share_CxBxT, 0), -1) / tokens_CxB
    # In units of the token's largest entry while its powers are moved, then of the sequence's.
    second_CxB, fourth_CxB = (jnp.sum(jnp.where(counts_CxBxT, sums, 0), -1) for sums in _about(
        c2_BxT * share_CxBxT ** 2, c3_BxT * share_CxBxT ** 3, c4_BxT * share_CxBxT ** 4, width,
        mean_BxT * share_CxBxT - mean_CxB[..., None]))
    kurtosis_CxB = tokens_CxB * width * (fourth_CxB / second_CxB) / second_CxB
    kurtosis_CxB = jnp.where(scale_CxB >= SMALLEST, kurtosis_CxB, jnp.nan)
    exists_CxB = tokens_CxB > 0
    pooled_C = jnp.where(is_known_C, jnp.sum(jnp.where(exists_CxB, kurtosis_CxB, 0), -1), jnp.nan)
    excess_G = jnp.sum(jnp.where(a.groups_GxBxT, excess_BxT, 0), (1, 2))
    return {"count": a.count_G, "excess": jnp.where(a.is_within_G, excess_G, jnp.nan),
            "pooled": pooled_C, "sequences": jnp.sum(exists_CxB, -1, dtype=jnp.float32)}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    chosen = int(no_first)
    return {
        "kurtosis_pooled": s["pooled"][..., chosen] / s["sequences"][..., chosen],
        "excess_kurtosis_token": (
            group(s, "excess", no_first) / group(s, "count", no_first)),
    }


def _about(c2: jax.Array, c3: jax.Array, c4: jax.Array, width: int, u: jax.Array
           ) -> tuple[jax.Array, jax.Array]:
  """Computes sums of the second and fourth powers about a centre that lies u below the mean."""
  square = jnp.square(u)
  return (c2 + width * square,
          c4 + 4 * u * c3 + 6 * square * c2 + width * jnp.square(square))
