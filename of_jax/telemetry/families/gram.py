"""Correlations of tokens and of neurons, both from X^T X."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.activations import Activations
from of_jax.telemetry.family import Family, Statistics, group, where_squared

KIND = "activations"
SITES = ("resid_pre", "final")
EVERY = 100
METRICS = {
    "input_correlation_rms": (
        "full", "RMS off-diagonal of X X^T / d, X scaled to mean square 1", "correlation",
        "0 to 1", "He et al. 2024, 2405.19279, Sec. 2"),
    "feature_correlation_rms": (
        "full", "RMS off-diagonal of X^T X / n, X scaled to mean square 1", "correlation",
        "0 to 1", "He et al. 2024, 2405.19279, Sec. 2"),
}


class Gram(Family):
  """Gram matrices: |X X^T|^2 = |X^T X|^2 (Frobenius), so tokens x tokens is never formed.

  The statistics of a layer are two matrices width x width, and cost as many operations as a
  product of X with two square matrices: which is why they are measured apart.
  """

  def statistics(self, a: Activations) -> Statistics:
    groups_GxBxT = a.groups_GxBxT.astype(jnp.float32)
    gram_GxDxE = jnp.einsum("gbt,btd,bte->gde", groups_GxBxT, a.x_BxTxD, a.x_BxTxD,
                            precision=jax.lax.Precision.HIGHEST)
    norm_BxT = jnp.sum(jnp.square(a.x_BxTxD), -1)
    scale_G = jnp.max(groups_GxBxT * norm_BxT, (1, 2))
    share_GxBxT = groups_GxBxT * norm_BxT / jnp.where(scale_G > 0, scale_G, 1)[:, None, None]
    return {"count": a.count_G,
            "gram": jnp.where(a.is_within_G[:, None, None], gram_GxDxE, jnp.nan),
            # |x_a|^4 would overflow: it is kept over the square of the largest |x_a|^2.
            "scale": scale_G, "norm_fourth": jnp.sum(jnp.square(share_GxBxT), (1, 2))}

  def merge(self, a: Statistics, b: Statistics) -> Statistics:
    scale, norm_fourth = _joined(a["scale"], a["norm_fourth"], b["scale"], b["norm_fourth"])
    return {"count": a["count"] + b["count"], "gram": a["gram"] + b["gram"], "scale": scale,
            "norm_fourth": norm_fourth}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    count, gram = group(s, "count", no_first), group(s, "gram", no_first, -3)
    scale, norm_fourth = s["scale"][..., 1], s["norm_fourth"][..., 1]
    if not no_first:
      scale, norm_fourth = _joined(
          s["scale"][..., 0], s["norm_fourth"][..., 0], scale, norm_fourth)
    width = gram.shape[-1]
    # trace = n d mean(X^2). The entries of X X^T / d, X scaled, are <x_a, x_b> n / trace; those
    # of X^T X / n are <x_i, x_j> d / trace.
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    share = gram / trace[..., None, None]
    off_diagonal = jnp.sum(jnp.square(share) * (1 - jnp.eye(width)), (-2, -1))
    everything = jnp.sum(jnp.square(share), (-2, -1))
    pairs = jnp.where(count > 1, count - 1, jnp.nan)
    mean_square = trace / width / count
    of_inputs = (everything - norm_fourth * jnp.square(scale / trace)) * count / pairs
    return {
        # Rounding alone can bring the difference below 0.
        "input_correlation_rms": where_squared(
            mean_square, jnp.sqrt(jnp.maximum(of_inputs, 0))),
        "feature_correlation_rms": where_squared(mean_square, jnp.sqrt(
            off_diagonal * width / (width - 1 if width > 1 else jnp.nan))),
    }


def _joined(scale_a: jax.Array, sum_a: jax.Array, scale_b: jax.Array, sum_b: jax.Array
            ) -> tuple[jax.Array, jax.Array]:
  """Adds sums of squares over the square of a scale each, over that of the larger scale."""
  scale = jnp.maximum(scale_a, scale_b)
  divisor = jnp.where(scale > 0, scale, 1)
  return scale, (sum_a * jnp.square(scale_a / divisor) + sum_b * jnp.square(scale_b / divisor))
