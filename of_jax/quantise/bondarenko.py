"""Grids and ranges of Bondarenko et al. 2023 (2306.12929), as their code has them
(github.com/Qualcomm-AI-research/outlier-free-transformers). Enters: arrays. Leaves: of_jax's grids.

Where of_jax.quantise.quantisers differs, it wastes no number on what is never there, and searches
shares of a tensor's own extremes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.quantise.quantisers import Axes, Grid, extremes

CANDIDATES = 100
MARGIN = 0.5
# Neither a step nor the upper end of a range is smaller.
LEAST_STEP = 1e-8


def weight_grid(w: jax.Array, bound: jax.Array, bits: int) -> Grid:
  """Makes a symmetric grid: -2^(bits - 1) to 2^(bits - 1) - 1, or 0 to 2^bits - 1 where the whole
  of w has no negative entry. The largest number stands for `bound`."""
  signed = jnp.min(jnp.where(jnp.isfinite(w), w, 0)) < 0
  most = jnp.where(signed, 2.0 ** (bits - 1) - 1, 2.0 ** bits - 1).astype(bound.dtype)
  least = jnp.where(signed, -2.0 ** (bits - 1), 0.0).astype(bound.dtype)
  scale = jnp.maximum(jnp.maximum(bound, LEAST_STEP) / most, LEAST_STEP)
  return Grid(scale, jnp.zeros_like(scale), least, most)


def searched_bound(w: jax.Array, axes: Axes, bits: int) -> jax.Array:
  """Bound, of 1 to 100 hundredths of w's largest magnitude + 0.5, whose grid has the least squared
  error along axes; the margin is no share of w, so that small weights have few candidates."""
  w = w.astype(jnp.float32)
  largest = extremes(jnp.abs(w), tuple(range(w.ndim)))[1]
  step = (largest + np.float32(MARGIN)) / CANDIDATES

  def error(candidate: jax.Array) -> jax.Array:
    squares = jnp.square(weight_grid(w, step * candidate, bits)(w) - w)
    squares = jnp.where(jnp.isfinite(w), squares, 0)
    # Axis by axis: a float32 sum of millions in one go would lose what tells candidates apart.
    for axis in axes:
      squares = jnp.sum(squares, axis, keepdims=True)
    return squares

  candidates = jnp.arange(1, CANDIDATES + 1, dtype=jnp.float32)
  return step.reshape((1,) * w.ndim) * (1 + jnp.argmin(jax.lax.map(error, candidates), 0))


def activation_grid(low: jax.Array, high: jax.Array, bits: int) -> Grid:
  """Makes the asymmetric grid: 0 to 2^bits - 1, with 0 exactly among what they stand for."""
  low, high = jnp.minimum(low, 0), jnp.maximum(high, LEAST_STEP)
  most = 2 ** bits - 1
  scale = jnp.maximum((high - low) / most, LEAST_STEP)
  return Grid(scale, jnp.clip(jnp.round(-low / scale), 0, most), 0, most)
