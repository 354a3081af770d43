"""Arithmetic of quantisation: ranges, grids, rounding. Enters: arrays. Leaves: integers, or the
numbers that they stand for.

A whole number q stands for (q - zero) scale. Ranges are of the finite values; what is not finite is
passed through as it is.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Percentiles are 99.999 % and 0.001 %: of this many values one lies beyond.
TAIL = 100_000
MOMENTUM = 0.9
# What the MSE search tries: these shares of the extremes, the whole first.
FRACTIONS = tuple(round(1 - 0.01 * i, 2) for i in range(81))

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
  """Evenly spaced numbers: (q - zero) scale for the whole numbers q from `least` to `most`."""

  scale: jax.Array
  zero: jax.Array
  least: int | jax.Array
  most: int | jax.Array

  def integers(self, x: jax.Array) -> jax.Array:
    """Finds the nearest q, as a float; ties to even. What is not finite becomes `zero`."""
    x = jnp.where(jnp.isfinite(x), x, 0)
    return jnp.clip(jnp.round(x / self.scale) + self.zero, self.least, self.most)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Rounds to the nearest number of the grid, in the type of x."""
    nearest = (self.integers(x) - self.zero) * self.scale
    return jnp.where(jnp.isfinite(x), nearest, x).astype(x.dtype)


def symmetric(bound: jax.Array, bits: int) -> Grid:
  """Makes the grid of 2^bits - 1 numbers from -bound to bound, 0 among them; for weights."""
  most = 2 ** (bits - 1) - 1
  return Grid(_positive(bound / most), jnp.zeros_like(bound), -most, most)


def asymmetric(low: jax.Array, high: jax.Array, bits: int) -> Grid:
  """Makes the grid of 2^bits numbers from about low to about high, with 0 exactly among them."""
  low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
  least, most = -2 ** (bits - 1), 2 ** (bits - 1) - 1
  scale = _positive((high - low) / (most - least))
  return Grid(scale, least - jnp.round(low / scale), least, most)


def extremes(x: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
  """Least and largest finite value along axes, which stay with size 1; 0 without any."""
  finite = jnp.isfinite(x)
  low = jnp.min(jnp.where(finite, x, jnp.inf), axes, keepdims=True)
  high = jnp.max(jnp.where(finite, x, -jnp.inf), axes, keepdims=True)
  found = jnp.any(finite, axes, keepdims=True)
  return jnp.where(found, low, 0), jnp.where(found, high, 0)


def percentiles(x: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
  """Percentiles 0.001 and 99.999 of the finite values, interpolated; axes as in `extremes`."""
  return -_upper_percentile(-x, axes), _upper_percentile(x, axes)


def _upper_percentile(x: jax.Array, axes: Axes) -> jax.Array:
  """Percentile 99.999 of the finite values along axes.

  Its place from the top, (count - 1) / 100000, is found in whole numbers and a rest: as a float32
  it would be wrong by whole places of millions.
  """
  kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
  rows = jnp.transpose(x, (*kept, *axes)).reshape(*(x.shape[axis] for axis in kept), -1)
  finite = jnp.isfinite(rows)
  last = jnp.sum(finite, -1, keepdims=True, dtype=jnp.int32) - 1
  size = rows.shape[-1]
  top = jax.lax.top_k(jnp.where(finite, rows, -jnp.inf), min(size, (size - 1) // TAIL + 2))[0]
  a, b = (jnp.take_along_axis(top, jnp.clip(place, 0, jnp.maximum(last, 0)), -1)
          for place in (last // TAIL, last // TAIL + 1))
  rest = (last % TAIL).astype(x.dtype) / TAIL
  value = jnp.where(last >= 0, a + (b - a) * rest, 0)
  return value.reshape([1 if axis in axes else size for axis, size in enumerate(x.shape)])


def least_error(x: jax.Array, axes: Axes, grid: Callable[[jax.Array], Grid]) -> jax.Array:
  """Share of the range, of FRACTIONS, whose grid has the least squared error along axes.

  Args:
    grid: a share -> the grid.
  """
  def error(fraction: jax.Array) -> jax.Array:
    squares = jnp.square(grid(fraction)(x) - x)
    return jnp.sum(jnp.where(jnp.isfinite(x), squares, 0), axes, keepdims=True)

  fractions = jnp.asarray(FRACTIONS, x.dtype)
  best: jax.Array = fractions[jnp.argmin(jax.lax.map(error, fractions), 0)]
  return best


def weight_bound(w: jax.Array, axes: Axes, bits: int, how: str) -> jax.Array:
  """Largest magnitude that `symmetric` is to hold; `how` is one of scheme.RANGES["weight"]."""
  if how == "percentile":
    return _upper_percentile(jnp.abs(w), axes)
  bound = extremes(jnp.abs(w), axes)[1]
  if how == "mse":
    return bound * least_error(w, axes, lambda fraction: symmetric(bound * fraction, bits))
  return bound


def activation_range(x: jax.Array, axes: Axes, bits: int, how: str) -> tuple[jax.Array, jax.Array]:
  """Range of one batch; `how` is one of scheme.RANGES["activation"]."""
  if how == "percentile":
    return percentiles(x, axes)
  low, high = extremes(x, axes)
  if how == "mse":
    share = least_error(x, axes, lambda part: asymmetric(low * part, high * part, bits))
    return low * share, high * share
  return low, high


def combine(old: tuple[jax.Array, jax.Array], new: tuple[jax.Array, jax.Array], how: str
            ) -> tuple[jax.Array, jax.Array]:
  """Combines ranges after one more batch: the union for min_max, else a running mean.

  That is MOMENTUM x old + (1 - MOMENTUM) x new, from the first batch's, as in Bondarenko et al.'s
  code (github.com/Qualcomm-AI-research/outlier-free-transformers).
  """
  if how == "min_max":
    return jnp.minimum(old[0], new[0]), jnp.maximum(old[1], new[1])
  low, high = (MOMENTUM * a + (1 - MOMENTUM) * b for a, b in zip(old, new))
  return low, high


def _positive(scale: jax.Array) -> jax.Array:
  # A range of nothing but 0, or one too small to divide, has any scale.
  smallest = float(np.finfo(np.dtype(scale.dtype)).tiny)
  return jnp.where(scale >= smallest, scale, 1)
