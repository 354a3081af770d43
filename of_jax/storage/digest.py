"""Digests of checkpoints, which show whose parameters they are and of which step, on any mesh.

Enters: parameters. Leaves: one 32-bit sum an array, in integers, so that it is the same number
however the array is split and in whatever order it is added up.
"""

from typing import Any

import jax
import jax.numpy as jnp

Digest = dict[str, jax.Array]

# 2^32 over the golden ratio, and the constants of MurmurHash3's last mixing.
_SPREAD, _FIRST, _SECOND = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


@jax.jit
def digest(params: Any, step: int | jax.Array) -> Digest:
  """Computes the digest of parameters: one 32-bit sum an array, the same however it is split.

  The sum is, modulo 2^32 over the array's float32 entries, of mix(bits + 0x9E3779B9 x flat index)
  with MurmurHash3's last mixing: an entry that changes, or moves, changes it.

  Args:
    params: a tree of float32 arrays.
    step: how many steps they were trained for.

  Returns:
    `step`, int32, and `params`, uint32 [arrays], in the order of jax.tree.leaves.
  """
  return {"step": jnp.int32(step),
          "params": jnp.stack([_sum_of_mixed(leaf) for leaf in jax.tree.leaves(params)])}


def as_text(found: Digest) -> str:
  """Spells a digest: the sums of the arrays one after the other, eight hexadecimal digits each."""
  return "".join(f"{int(part):08x}" for part in jax.device_get(found["params"]))


def _sum_of_mixed(x: jax.Array) -> jax.Array:
  assert x.dtype == jnp.float32, "parameters are float32"
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + index * jnp.uint32(_SPREAD)
  for shift, factor in ((16, _FIRST), (13, _SECOND)):
    bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
  return jnp.sum(bits ^ (bits >> 16), dtype=jnp.uint32)
