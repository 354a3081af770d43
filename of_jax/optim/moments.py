"""Arithmetic of decaying averages that several optimisers share."""

import math

import jax
import jax.numpy as jnp


def averaged_weight(decay: float | jax.Array, count: jax.Array) -> jax.Array:
  """Weight that a moving average from 0 has gathered, 1 - decay^count: its bias correction.

  Taken as a power and then from 1, float32 would keep five digits of it at decay 0.999 and
  count 1; a decay that is a Python number loses none here.
  """
  if not isinstance(decay, (int, float)):
    return 1 - decay ** count
  if decay == 0:
    return jnp.ones_like(count, jnp.float32)
  return -jnp.expm1(count * math.log(decay))
