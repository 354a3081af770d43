"""Memory that a run's state takes, held against what there is before any work.

Enters: the shapes of a state as it is laid out. Leaves: nothing, or a line for the user. Only what
cannot fit in any way is refused: gradients, activations and the compiler's own needs come on top.
"""

import math
import os
from pathlib import Path
from typing import Any

import jax

from of_jax.errors import UserError

_GB = 1e9
# Where a container's limit stands, of the newer kind and the older.
_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_devices(shapes: Any, shardings: Any, runs: int = 1) -> None:
  """Checks that the state of runs fits the memory of this process's devices.

  Args:
    shapes, shardings: of the state of one run.
    runs: how many such states there are.

  Raises:
    UserError: the state alone takes more than there is.
  """
  devices = jax.local_devices()
  needed = runs * bytes_of_a_device(shapes, shardings)
  if devices[0].platform == "cpu":
    # They share the machine's memory.
    check("this machine", needed * len(devices), of_this_machine(), runs)
  else:
    stats = devices[0].memory_stats() or {}
    check(f"a device ({devices[0].device_kind})", needed, stats.get("bytes_limit"), runs)


def check(what: str, needed: int, there_is: int | None, runs: int = 1) -> None:
  """Raises UserError where a state needs more bytes than there are, which None leaves open."""
  if there_is is not None and needed > there_is:
    several = f" of {runs} runs" if runs > 1 else ""
    raise UserError(
        f"config.model: parameters and the optimiser's state{several} take {needed / _GB:,.1f} GB "
        f"of {what}, which has {there_is / _GB:,.1f} GB, before gradients and activations; make "
        "the model smaller (model.width, model.depth, data.vocab_size), or split it (mesh.fsdp)")


def bytes_of_a_device(shapes: Any, shardings: Any) -> int:
  """Counts the bytes that one device holds of arrays that are laid out so."""
  parts = jax.tree.map(
      lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
      shapes, shardings)
  return sum(jax.tree.leaves(parts))


def of_this_machine() -> int:
  """Counts the bytes of memory that this machine, or the container around it, has."""
  found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for path in map(Path, _CONTAINER):
    text = path.read_text().strip() if path.is_file() else ""
    if text.isascii() and text.isdecimal():
      found.append(int(text))
  return min(found)
