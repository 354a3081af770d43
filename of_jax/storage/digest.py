"""Digests of checkpoints, which show whose parameters they are and of which step, on any mesh.

Enters: parameters, or a whole state. Leaves: one 32-bit sum an array, in integers, so that it is
the same number however the array is split and in whatever order it is added up.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.errors import UserError

Digest = dict[str, jax.Array]

# 2^32 over the golden ratio, and the constants of MurmurHash3's last mixing.
_SPREAD, _FIRST, _SECOND = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


class Damaged(UserError):
  """A checkpoint that is not, or no longer, what was saved: `reason` says why."""

  def __init__(self, reason: str, where: str = ""):
    super().__init__(f"{where}: the checkpoint is damaged: {reason}" if where else reason)
    self.reason = reason


def digest(params: Any, step: int | jax.Array) -> Digest:
  """Computes the digest of parameters: one 32-bit sum an array, the same however it is split.

  The sum is, modulo 2^32 over the array's 32-bit words, of mix(word + 0x9E3779B9 x flat index)
  with MurmurHash3's last mixing: an entry that changes, or moves, changes it. The words are the
  bits of the entries: one each, of a narrower type with zeros above, of a wider one several.

  Args:
    params: a tree of arrays of any dtype, or of keys.
    step: how many steps they were trained for.

  Returns:
    `step`, int32, and `params`, uint32 [arrays], in the order of jax.tree.leaves.
  """
  found: Digest = _digest(_halved({"params": params}), step)
  return found


def digest_of_state(params: Any, opt_state: Any, step: int | jax.Array,
                    run: np.ndarray | None = None) -> Digest:
  """Computes the digest of a whole state: `digest`, `opt_state` as it has `params`, and `run`, by
  which it shows whose it is, uint32 [8], if one is given."""
  found: Digest = _digest(_halved({"params": params, "opt_state": opt_state}), step, run)
  return found


def check_state(state: Mapping[str, Any], step: int, written: Mapping[str, Any], complete: bool,
                run: np.ndarray | None = None) -> bool:
  """Checks a loaded state against the digest that was saved with it; all processes call it alike.

  Args:
    state: `params` and `opt_state`, on whatever mesh.
    step: of the checkpoint.
    written: the digest of all of it, of the parameters alone, or empty, as older versions saved.
    complete: whether the checkpoint must have all.
    run: what `written` must say of the run, if it says anything.

  Returns:
    Whether all of it was checked.

  Raises:
    Damaged: the step, the run or an array is another.
  """
  if complete and "opt_state" not in written or not complete and "opt_state" in written:
    raise Damaged("a part of it is gone: its digest, or _CHECKPOINT_METADATA")
  if not written:
    return False
  if int(written["step"]) != step:
    raise Damaged(f"it was written at step {int(written['step'])}")
  if run is not None and "run" in written and not np.array_equal(written["run"], run):
    raise Damaged("its arrays are of another run than its _CHECKPOINT_METADATA")
  found = digest_of_state(state["params"], state["opt_state"], step)
  for name, what in (("params", "parameters"), ("opt_state", "optimiser's state")):
    if name in written and not np.array_equal(written[name], jax.device_get(found[name])):
      raise Damaged(f"the digest of its {what} is not the one that was written with it")
  return "opt_state" in written


def as_text(found: Digest) -> str:
  """Spells a digest: the sums of the arrays one after the other, eight hexadecimal digits each."""
  return "".join(f"{int(part):08x}" for part in jax.device_get(found["params"]))


def _halved(tree: Any) -> Any:
  """Splits the wide numbers of NumPy's arrays in two, which jax would round to 32 bits."""
  def split(leaf: Any) -> Any:
    if isinstance(leaf, (bool, int, float, complex, np.generic)):
      leaf = np.asarray(leaf)
    if isinstance(leaf, np.ndarray) and leaf.dtype.itemsize > 4:
      return np.ascontiguousarray(leaf)[..., None].view(np.uint32)
    return leaf

  return jax.tree.map(split, tree)


@jax.jit
def _digest(parts: dict[str, Any], step: int | jax.Array, run: Any = None) -> Digest:
  def sums(tree: Any) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    return (jnp.stack([_sum_of_mixed(_words(leaf)) for leaf in leaves]) if leaves
            else jnp.zeros(0, jnp.uint32))

  # Step and run too are made here, so that they lie on all devices of all processes.
  said = {} if run is None else {"run": jnp.asarray(run, jnp.uint32)}
  return {"step": jnp.int32(step), **said, **{name: sums(tree) for name, tree in parts.items()}}


def _words(x: jax.Array) -> jax.Array:
  """Gives the bits of an array as uint32."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return _words(jax.random.key_data(x))
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  if jnp.iscomplexobj(x):
    return _words(jnp.stack([x.real, x.imag], -1))
  kind: Any = jnp.finfo if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo
  bits = kind(x.dtype).bits
  if bits < 8:
    # No type of the bits alone is so narrow; each of these values is a float32.
    return _words(x.astype(jnp.float32))
  if bits > 32:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, f"uint{bits}").astype(jnp.uint32)


def _sum_of_mixed(words: jax.Array) -> jax.Array:
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  bits = words + index * jnp.uint32(_SPREAD)
  for shift, factor in ((16, _FIRST), (13, _SECOND)):
    bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
  return jnp.sum(bits ^ (bits >> 16), dtype=jnp.uint32)
