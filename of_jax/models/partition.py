"""Logical axes of arrays and where each lies on the device mesh.

Parameters name their axes when they are created; this table is the only place that says which
mesh axis splits which. Without a mesh (`jax.set_mesh`) every function here does nothing.
"""

import math
from collections.abc import Callable, Mapping

import jax
from jax.sharding import PartitionSpec

from of_jax.xla.placement import BATCH_AXES, is_split

# FSDP splits every matrix over `embed`, tensor parallelism over what heads and units share.
PARAMETER_AXES: dict[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "position": None,
    "pixel": None,
    "class": None,
    # Vectors of the width are small, and a split norm gain would cost a gather a use.
    "channel": None,
    "rank": None,
    "window": None,
}
# What an optimiser keeps beside arrays like the parameters: a stack of `matrices`, with `side`s.
# A mesh axis splits the first of an array's axes that lists it and that it divides.
STATE_AXES: dict[str, tuple[str, ...]] = {
    "matrices": ("fsdp", "tensor"),
    "side": ("fsdp", "tensor"),
}


def parameter_spec(axes: tuple[str, ...]) -> PartitionSpec:
  """Gives the PartitionSpec of a parameter. Raises KeyError on an axis that the table lacks."""
  return PartitionSpec(*(PARAMETER_AXES[axis] for axis in axes))


def state_spec(axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mapping[str, int]
               ) -> PartitionSpec:
  """Gives the PartitionSpec of an optimiser's own array, by the rule of STATE_AXES.

  Args:
    axes: logical axes, one an axis of the array.
    shape: of the array.
    mesh: size of each mesh axis.
  """
  split: list[list[str]] = [[] for _ in axes]
  for mesh_axis in ("fsdp", "tensor"):
    for names, axis, length in zip(split, axes, shape, strict=True):
      ways = math.prod(mesh[name] for name in (*names, mesh_axis))
      if mesh[mesh_axis] > 1 and mesh_axis in STATE_AXES[axis] and length % ways == 0:
        names.append(mesh_axis)
        break
  return PartitionSpec(*(tuple(names) or None for names in split))


def batch_spec(rank: int) -> PartitionSpec:
  """Gives the PartitionSpec of an activation or batch of `rank` axes whose first is the batch."""
  return PartitionSpec(BATCH_AXES, *([None] * (rank - 1)))


def constrain_batch(x: jax.Array) -> jax.Array:
  """Splits `x` over its first axis alone."""
  return _constrain(x, batch_spec(x.ndim))


def constrain_replicated(x: jax.Array) -> jax.Array:
  """Places `x` whole on every device."""
  return _constrain(x, PartitionSpec(*([None] * x.ndim)))


def constrain_vocabulary(x: jax.Array) -> jax.Array:
  """Splits `x` [..., width, vocabulary] over its vocabulary, and a third axis as a batch is."""
  return _constrain(x, PartitionSpec(
      *([BATCH_AXES] if x.ndim == 3 else []), None, PARAMETER_AXES["vocab"]))


def _constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
  if "data" not in jax.sharding.get_abstract_mesh().axis_names:
    return x
  constrained: jax.Array = jax.lax.with_sharding_constraint(x, spec)
  return constrained


def of_sequences_and_heads(run: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array,
                           documents: jax.Array | None) -> jax.Array:
  """Runs a kernel, which the compiler cannot split, by each device on its own sequences and heads.

  Args:
    run: takes and gives what follows.
    q, k, v: [batch, time, heads or groups, head_dim].
    documents: [batch, time], or None.
  """
  if not is_split():
    return run(q, k, v, documents)
  of_heads = PartitionSpec(BATCH_AXES, None, "tensor", None)
  of_tokens = None if documents is None else batch_spec(2)
  attended: jax.Array = jax.shard_map(
      run, in_specs=(of_heads, of_heads, of_heads, of_tokens), out_specs=of_heads,
      check_vma=False)(q, k, v, documents)
  return attended
