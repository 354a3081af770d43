"""Groups of devices that take part together in a collective, off its text."""

import math
import re

import numpy as np

from of_jax.cost_model.hlo_text import Instruction

Groups = tuple[tuple[int, ...], ...]


def device_groups(instruction: Instruction, partitions: int) -> Groups:
  """Lists the groups of devices, by their numbers; a permutation's are its pairs.

  Raises:
    ValueError: groups are written in a form that is not known.
  """
  text = instruction.attributes
  if "replica_groups={}" in text:
    return (tuple(range(partitions)),)
  pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
  listed = re.search(r"replica_groups=\{(\{[\d, {}]*\})\}", text)
  if pairs or listed:
    found = pairs or listed
    assert found is not None
    return tuple(tuple(map(int, re.findall(r"\d+", group)))
                 for group in re.findall(r"\{([\d, ]*)\}", found.group(1)))
  # replica_groups=[4,2]<=[2,4]T(1,0): 0, 1, 2, ... as [2, 4], transposed, as rows of 4 groups.
  iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if iota:
    shape = [int(n) for n in iota.group(3).split(",")]
    order = [int(n) for n in iota.group(4).split(",")] if iota.group(4) else range(len(shape))
    devices = np.arange(math.prod(shape)).reshape(shape).transpose(order)
    return _rows(devices.reshape(int(iota.group(1)), int(iota.group(2))))
  # replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}: groups along axes of a mesh
  # of devices in this order, an axis perhaps as 'b':(1)2: of what is left of it behind its first 1
  # parts, 2 parts.
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
  if mesh is None:
    raise ValueError(f"replica groups in a form that is not known: {text[:200]}")
  sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
  parts = [(axis, int(before or 1), int(size or sizes[axis])) for axis, before, size in
           re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh.group(3))]
  return _rows(_of_mesh(_order(mesh.group(2) or "", math.prod(sizes.values())), sizes, parts))


def spans_hosts(groups: Groups, hosts: tuple[int, ...]) -> bool:
  """Tells whether any group has devices of several hosts, given each device's host."""
  return any(len({hosts[device] for device in group}) > 1 for group in groups)


def most_in_host(groups: Groups, hosts: tuple[int, ...]) -> int:
  """Counts the devices of a group that stand in one host: in the emptiest of any group's hosts."""
  return min(min(_counts([hosts[device] for device in group])) for group in groups)


def _counts(of: list[int]) -> list[int]:
  return [of.count(host) for host in set(of)]


def _order(text: str, count: int) -> np.ndarray:
  """Devices in the order of a mesh: as listed, or as an array of them that is transposed."""
  iota = re.match(r"\[([\d,]+)\](?:T\(([\d,]+))?", text)
  if iota is None:
    listed = [int(n) for n in re.findall(r"\d+", text)]
    return np.array(listed) if listed else np.arange(count)
  shape = [int(n) for n in iota.group(1).split(",")]
  order = [int(n) for n in iota.group(2).split(",")] if iota.group(2) else range(len(shape))
  return np.arange(count).reshape(shape).transpose(order).ravel()


def _of_mesh(devices: np.ndarray, sizes: dict[str, int], parts: list[tuple[str, int, int]]
             ) -> np.ndarray:
  """Rows of devices that differ along parts (axis, parts of it before, size) of a mesh's axes."""
  shape: list[int] = []
  together: list[int] = []
  for axis, size in sizes.items():
    left = size
    for _, before, part in sorted((p for p in parts if p[0] == axis), key=lambda p: p[1]):
      skipped = before // (size // left)
      shape += [skipped] * (skipped > 1)
      together.append(len(shape))
      shape.append(part)
      left //= skipped * part
    shape += [left] * (left > 1)
  apart = [i for i in range(len(shape)) if i not in together]
  turned = devices.reshape(shape).transpose(apart + together)
  return turned.reshape(-1, math.prod(shape[i] for i in together))


def _rows(devices: np.ndarray) -> Groups:
  return tuple(tuple(map(int, row)) for row in devices)
