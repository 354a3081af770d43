"""TPU slices that can be had, and what Google states of their chips. Imports no jax."""

import dataclasses
import importlib.util
import itertools
import math
import re

from of_jax.errors import UserError

GIB = 2 ** 30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What Google states of a chip (cloud.google.com/tpu/docs, a page a kind).

  Attributes:
    flops: dense bfloat16, a second.
    hbm_bytes: of memory.
    hbm_bandwidth: bytes a second.
    link_bandwidth: bytes a second that all its links send: half of "bidirectional".
    slices: shapes of the torus that can be had.
  """

  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float
  slices: tuple[tuple[int, ...], ...]


def _cubes(most: int) -> tuple[tuple[int, ...], ...]:
  """Parts of a cube of 4 x 4 x 4, and tori of whole cubes with sides in rising order."""
  sides = range(4, most // 16 + 1, 4)
  whole = [shape for shape in itertools.combinations_with_replacement(sides, 3)
           if math.prod(shape) <= most]
  return ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), *whole)


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, _FLAT),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9, _FLAT),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, _cubes(1024)),
}


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
  """`v5p:4x4x8` -> the chip and the shape of its torus.

  Raises:
    UserError: no such kind, or no such slice; the line names the nearest that exists.
  """
  kind, _, text = topology.partition(":")
  if kind not in CHIPS:
    raise UserError(f"--topology={topology}: no kind of chip that is known here; there are "
                    f"{', '.join(CHIPS)}, as in v5p:4x4x8")
  chip = CHIPS[kind]
  if not re.fullmatch(r"\d+(x\d+)*", text):
    raise UserError(f"--topology={topology}: no shape; {kind} is given as in "
                    f"{kind}:{_shape_text(chip.slices[4])}")
  shape = tuple(map(int, text.split("x")))
  if shape not in chip.slices:
    chips = max(1, math.prod(shape))
    nearest = min(chip.slices, key=lambda s: (sorted(s) != sorted(shape), abs(math.log(
        math.prod(s) / chips)), sum(s)))
    raise UserError(f"--topology={topology}: no such slice; the nearest is "
                    f"{kind}:{_shape_text(nearest)} of {math.prod(nearest)} chips")
  return chip, shape


def check_compiler() -> None:
  """Raises UserError unless libtpu is installed; imports nothing."""
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("the TPU compiler is not installed; pip install -e '.[tpu]'")


def _shape_text(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))
