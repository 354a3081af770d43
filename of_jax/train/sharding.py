"""Sharding: the device mesh, and where every array of the train state lies on it."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from of_jax.config import Config
from of_jax.config.rules.common import check_batch_splits
from of_jax.errors import UserError
from of_jax.models import partition
from of_jax.models.functional import Network

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
  """Makes the mesh (data, fsdp, tensor) of the config over this job's devices, or those given.

  Raises:
    UserError: more devices asked for than there are, devices that the other axes do not divide,
      a batch that the mesh cannot split, or a mesh that the torus of a TPU slice does not have.
  """
  sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
  is_described = devices is not None
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  for axis, size in sizes.items():
    if size == -1:
      if count % fixed:
        raise UserError(f"config.mesh.{axis}=-1: the {count} devices cannot be split by the "
                        f"other axes' {fixed}")
      sizes[axis] = count // fixed
  total = int(np.prod(list(sizes.values())))
  if total > count or (total < count and (jax.process_count() > 1 or is_described)):
    raise UserError(f"config.mesh: {_shape_text(tuple(sizes.values()))} needs {total} devices, "
                    f"and there are {count}")
  check_batch_splits(config, sizes["data"] * sizes["fsdp"])
  try:
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3,
                         devices=devices[:total])
  except NotImplementedError:
    # An axis of the mesh takes whole sides of the torus: a ring of links of its own.
    torus = tuple(1 + max(device.coords[side] for device in devices) for side in range(3))
    # Of two as near, the one that splits along the same axes.
    nearest = min(_meshes_of(torus), key=lambda mesh: tuple(
        round(sum(distances), 9) for distances in zip(*(
            (abs(math.log(ours / theirs)), (ours == 1) != (theirs == 1))
            for ours, theirs in zip(mesh, sizes.values())))))
    raise UserError(
        f"config.mesh: {_shape_text(tuple(sizes.values()))} does not fit the torus "
        f"{'x'.join(map(str, torus))}; the nearest that fits is {_shape_text(nearest)}") from None


def _meshes_of(torus: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
  """Yields the meshes whose axes are products of whole sides of a torus."""
  for owners in itertools.product(range(len(AXES)), repeat=len(torus)):
    yield tuple(math.prod(side for side, owner in zip(torus, owners) if owner == axis)
                for axis in range(len(AXES)))


def _shape_text(sizes: tuple[int, ...]) -> str:
  return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes))


def state_shardings(mesh: Mesh, network: Network, optimizer: optax.GradientTransformation
                    ) -> dict[str, Any]:
  """Decides the shardings of {"params", "opt_state", "step"}: moments lie where parameters lie.

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


def local_rows(mesh: Mesh, batch_size: int) -> npt.NDArray[np.int64]:
  """Finds the rows of a batch that the devices of this process hold, int64 [rows], ascending.

  On a torus they need not be consecutive, and processes that share a `tensor` axis hold the same.
  """
  held = NamedSharding(mesh, partition.batch_spec(1)).addressable_devices_indices_map((batch_size,))
  parts = [np.arange(batch_size)[index] for index in held.values() if index is not None]
  return np.unique(np.concatenate(parts))


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray], batch_size: int | None = None
                ) -> dict[str, jax.Array]:
  """Makes global arrays of a batch's rows, split over the mesh's axes data and fsdp.

  Args:
    mesh: its devices share the batch.
    batch: name -> this process's `local_rows` [rows, ...].
    batch_size: rows of the whole batch; default as many as `batch` has.
  """
  def place(rows: npt.NDArray[Any]) -> jax.Array:
    size = len(rows) if batch_size is None else batch_size
    held = local_rows(mesh, size)

    def part(index: tuple[slice, ...] | None) -> npt.NDArray[Any]:
      assert index is not None, "a batch has a first axis"
      first, last, _ = index[0].indices(size)
      at = int(np.searchsorted(held, first))
      return rows[at:at + last - first]

    return jax.make_array_from_callback(
        (size, *rows.shape[1:]), NamedSharding(mesh, partition.batch_spec(rows.ndim)), part)

  return {name: place(rows) for name, rows in batch.items()}
