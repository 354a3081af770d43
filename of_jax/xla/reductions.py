"""Reductions that every compiler does well, and floats' bits as integers of the same order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from of_jax.xla import placement


def fold(step: Callable[..., jax.Array], start: Any, *arrays: jax.Array, axis: int = -1,
         least: int = 16, most: int = 16) -> jax.Array:
  """Reduces an axis in pieces: total = step(total, *pieces), from `start`, over the pieces.

  For XLA's CPU compiler, which reduces any other way several times slower and writes to memory
  first what is reduced. What is done to arrays is done in `step`, or its result, having many
  readers, would be written too. Elsewhere there is one piece.

  Args:
    step: of the total so far and a piece of each array.
    start: of the total.
    arrays: of one length along the axis.
    axis: the one cut.
    least: how long a piece is at least, if there are several.
    most: how many pieces there are at most; the compiler fuses no more than 16.
  """
  length = arrays[0].shape[axis]
  most = min(most, length // least) if placement.platform() == "cpu" else 1
  pieces = next(n for n in range(max(most, 1), 0, -1) if length % n == 0)
  total: Any = start
  for parts in zip(*(jnp.split(array, pieces, axis) for array in arrays)):
    total = step(total, *parts)
  folded: jax.Array = total
  return folded


def plus(total: jax.Array | float, values: jax.Array) -> jax.Array:
  """Adds values to the total of `fold`.

  XLA's library of reductions would take a chain of additions, and have the values of each piece
  written first; a selection, although it never selects, it leaves in one loop with them.
  """
  return jnp.where(values < -jnp.inf, total, total + values)


def weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
  """Sum of weights x values.

  On CPU by a product of vectors, which the compiler fuses with nothing: a plain sum has other last
  bits where its result is one of several members'.
  """
  if placement.platform() == "cpu":
    return jnp.vdot(weights, values, precision=jax.lax.Precision.HIGHEST)
  return jnp.sum(weights * values)


def as_bits(x: jax.Array) -> jax.Array:
  """Reads the bits of |x| as int32, ordered as |x| is, a NaN above all."""
  return jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)


def as_float(bits: jax.Array) -> jax.Array:
  """Reads int32 as the float32 whose bits it has: the inverse of `as_bits`."""
  return jax.lax.bitcast_convert_type(bits, jnp.float32)
