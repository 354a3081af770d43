"""Placement that a program is traced for: the platform of the mesh, and the ways it splits.

The devices need not be here: a step is compiled for a TPU slice on machines that have none.
"""

import math

import jax

# The mesh axes that a batch is split over.
BATCH_AXES = ("data", "fsdp")


def platform() -> str:
  """Platform of the mesh that is set, `cpu`, `gpu` or `tpu`."""
  mesh = jax.sharding.get_abstract_mesh()
  found: str = (jax.default_backend() if mesh.empty or mesh.abstract_device is None
                else mesh.abstract_device.platform)
  return found


def ways(axes: tuple[str, ...]) -> int:
  """Number of parts that an array's axis along these mesh axes is split into.

  1 without a mesh, or where arrays are one device's part already.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(
      mesh.shape.get(axis, 1) for axis in axes if axis not in mesh.manual_axes)


def devices() -> int:
  """Number of devices that share an array; 1 where `ways` gives 1."""
  return ways(jax.sharding.get_abstract_mesh().axis_names)


def is_split() -> bool:
  """Tells whether arrays are the whole mesh's here, and not already one device's own part."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and not mesh.manual_axes
