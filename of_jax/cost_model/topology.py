"""TPU slices by name, as in v5p:4x4x8. Enters: text. Leaves: the chip and the shape of the torus.

Imports no jax.
"""

import importlib.util
import math
import re

from of_jax.cost_model.chips import CHIPS, Chip
from of_jax.errors import UserError


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
  """Reads a slice's name: `v5p:4x4x8` -> the chip and the shape of its torus.

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
