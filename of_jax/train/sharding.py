"""The device mesh, and where every array of the train state lies on it."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from of_jax.config import Config
from of_jax.config_rules import check_batch_splits
from of_jax.errors import UserError
from of_jax.models import partition
from of_jax.models.functional import Network

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: Config) -> Mesh:
  """The mesh (data, fsdp, tensor) of the config over this job's devices.

  Raises:
    UserError: more devices asked for than there are, devices that the other axes do not divide,
      or a batch that the mesh cannot split.
  """
  sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
  count = jax.device_count()
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  for axis, size in sizes.items():
    if size == -1:
      if count % fixed:
        raise UserError(f"config.mesh.{axis}=-1: the {count} devices cannot be split by the "
                        f"other axes' {fixed}")
      sizes[axis] = count // fixed
  total = int(np.prod(list(sizes.values())))
  if total > count or (total < count and jax.process_count() > 1):
    shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    raise UserError(f"config.mesh: {shape} needs {total} devices, and there are {count}")
  check_batch_splits(config, sizes["data"] * sizes["fsdp"])
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3,
                       devices=jax.devices()[:total])


def state_shardings(mesh: Mesh, network: Network, optimizer: optax.GradientTransformation
                    ) -> dict[str, Any]:
  """Shardings of {"params", "opt_state", "step"}: moments lie where their parameters lie.

  Left to itself, `jit(optimizer.init)` would replicate the moments over the mesh. An array of the
  state belongs to a parameter if its path ends in the parameter's and it has its shape. What an
  optimiser keeps beside such arrays, it keeps in nodes with an attribute `logical_axes`: of every
  array in the node, see `partition.STATE_AXES`. What is neither, as a norm or the mean squares of
  rows, is replicated.
  """
  replicated = NamedSharding(mesh, PartitionSpec())
  parameters = jax.tree.map(
      lambda axes: NamedSharding(mesh, partition.parameter_spec(axes)), network.axes,
      is_leaf=lambda node: isinstance(node, tuple))
  trained = network.trained(network.shapes)
  known: dict[Any, tuple[Any, NamedSharding]] = {
      path: (leaf.shape, sharding) for (path, leaf), sharding in zip(
          jax.tree_util.tree_leaves_with_path(trained),
          jax.tree.leaves(network.trained(parameters)))}

  def place(path: tuple[Any, ...], leaf: Any) -> Any:
    if hasattr(leaf, "logical_axes"):
      return jax.tree.map(lambda part: NamedSharding(
          mesh, partition.state_spec(leaf.logical_axes, part.shape, mesh.shape)), leaf)
    for start in range(len(path)):
      shape, sharding = known.get(path[start:], (None, replicated))
      if shape == leaf.shape:
        return sharding
    return replicated

  state = jax.tree_util.tree_map_with_path(
      place, jax.eval_shape(optimizer.init, trained),
      is_leaf=lambda node: hasattr(node, "logical_axes"))
  return {"params": parameters, "opt_state": state, "step": replicated}


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """This process's rows of a batch -> global arrays, split over data and fsdp."""
  return {name: jax.make_array_from_process_local_data(
      NamedSharding(mesh, partition.batch_spec(rows.ndim)), rows)
      for name, rows in batch.items()}
