"""Chips and what their makers state of them: TPUs with memory, bandwidth and slices, and the peak
rate of every accelerator that a run's utilization is reported against. Imports no jax.
"""

import dataclasses
import itertools
import math

from of_jax.cost_model.accelerator import GIB, Accelerator
from of_jax.cost_model.gpus import GPUS


@dataclasses.dataclass(frozen=True)
class Chip(Accelerator):
  """A kind of TPU, with the figures that Google states, see Accelerator.

  Attributes:
    link_bandwidth: bytes a second that all its links send: half of "bidirectional".
    slices: shapes of the torus that can be had.
    device_kinds: the names that jax's `device_kind` begins with on such a chip.
  """

  link_bandwidth: float
  slices: tuple[tuple[int, ...], ...]
  device_kinds: tuple[str, ...] = ()

  def send_seconds(self, sent: float, in_host: int, spans_hosts: bool) -> float:
    """Computes it as of an Accelerator: the torus is one, whatever the hosts."""
    return sent / self.link_bandwidth


def _cubes(most: int) -> tuple[tuple[int, ...], ...]:
  """Parts of a cube of 4 x 4 x 4, and tori of whole cubes with sides in rising order."""
  sides = range(4, most // 16 + 1, 4)
  whole = [shape for shape in itertools.combinations_with_replacement(sides, 3)
           if math.prod(shape) <= most]
  return ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), *whole)


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# The kinds of TPU that programs can be compiled for ahead of time.
CHIPS = {
    # Google, cloud.google.com/tpu/docs/v5e
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, _FLAT, ("TPU v5 lite", "TPU v5e")),
    # Google, cloud.google.com/tpu/docs/v6e
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9, _FLAT, ("TPU v6 lite", "TPU v6e")),
    # Google, cloud.google.com/tpu/docs/v5p
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, _cubes(1024), ("TPU v5", "TPU v5p")),
}
# Dense bfloat16 flops a second by how jax's `device_kind` begins.
_PEAK_FLOPS = {
    **{kind: chip.flops for chip in CHIPS.values() for kind in chip.device_kinds},
    "TPU v4": 275e12,  # Google, cloud.google.com/tpu/docs/v4
    **{gpu.device_kind: gpu.flops for gpu in GPUS.values()},
    "NVIDIA A100": GPUS["a100"].flops,  # As on its SXM board, so on others.
    # NVIDIA H100 and H200 Tensor Core GPU data sheets, half of the figures with sparsity.
    "NVIDIA H100": GPUS["h100"].flops,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200 NVL": 835e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Dense bfloat16 flops a second of one device, None where the maker's figure is not known here.

  Args:
    device_kind: as jax names the device; the longest name that it begins with counts.
  """
  known = [name for name in _PEAK_FLOPS if device_kind.startswith(name)]
  return _PEAK_FLOPS[max(known, key=len)] if known else None
