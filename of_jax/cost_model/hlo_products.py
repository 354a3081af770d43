"""Flops of the matrix products in optimised HLO, from their shapes."""

import math
import re
from collections.abc import Iterable

from of_jax.cost_model.hlo_text import Computation, Instruction, window_of

# Flops, those of matrix products among them, and those of float32 or wider among these.
Flops = tuple[int, int, int]
NOTHING: Flops = (0, 0, 0)


def total(counts: Iterable[Flops]) -> Flops:
  """Adds up flops of each sort."""
  flops, matrix, wide = map(sum, zip(NOTHING, *counts))
  return flops, matrix, wide


def is_wide(instruction: Instruction, computation: Computation) -> bool:
  """Tells whether what is multiplied is float32 or wider, by the first two operands."""
  return any(array.dtype in ("f32", "f64") for name in instruction.operands[:2]
             for array in computation[name].arrays)


def dot_flops(instruction: Instruction, computation: Computation) -> int:
  """Flops of a `dot`: 2 x elements of the result x length of what is summed over."""
  left = computation[instruction.operands[0]].arrays[0]
  summed = instruction.attribute("lhs_contracting_dims") or "{}"
  return 2 * instruction.arrays[0].size * math.prod(
      left.dims[int(axis)] for axis in summed.strip("{}").split(",") if axis)


def convolution_flops(instruction: Instruction, computation: Computation) -> int:
  """Flops of a `convolution`: 2 x products; those with padding and holes do not count.

  The TPU compiler writes matrix products as convolutions, batch axes as window axes in which one
  position of the kernel meets one of the input.
  """
  left, right = (computation[name].arrays[0] for name in instruction.operands)
  labels = instruction.attribute("dim_labels")
  assert labels is not None
  left_labels, right_labels, result_labels = re.split(r"_|->", labels)
  result = instruction.arrays[0]
  window = window_of(instruction)
  spatial = sorted(c for c in result_labels if c.isdigit())
  pairs = 1
  for i, axis in enumerate(spatial):
    pairs *= valid_pairs(
        left.dims[left_labels.index(axis)], right.dims[right_labels.index(axis)],
        result.dims[result_labels.index(axis)], window["stride"][i], window["pad"][i],
        window["lhs_dilate"][i], window["rhs_dilate"][i])
  groups = int(instruction.attribute("batch_group_count") or 1)
  batch = left.dims[left_labels.index("b")] // groups
  return (2 * batch * pairs * right.dims[right_labels.index("i")]
          * right.dims[right_labels.index("o")])


def valid_pairs(length: int, kernel: int, result: int, stride: int, pad: int, left_dilation: int,
                 right_dilation: int) -> int:
  """Counts, along one axis, pairs of a kernel's and a result's position that meet an input."""
  end = (length - 1) * left_dilation + 1
  count = 0
  for k in range(kernel):
    offset = k * right_dilation - pad
    if left_dilation == 1:
      # 0 <= stride x position + offset < length
      first = max(0, -(offset // stride))
      last = min(result - 1, (length - 1 - offset) // stride)
      count += max(0, last - first + 1)
    else:
      count += sum(1 for position in range(result)
                   if 0 <= (at := position * stride + offset) < end and at % left_dilation == 0)
  return count
