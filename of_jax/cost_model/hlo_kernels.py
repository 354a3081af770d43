"""Flops of what NVIDIA's libraries compute, off the custom calls that the GPU compiler makes.

Enters: instructions as of_jax.cost_model.hlo_text parses them. Leaves: flops.
"""

import math
import re

from of_jax.cost_model.hlo_text import Computation, Instruction


def library_flops(target: str, instruction: Instruction, computation: Computation) -> int | None:
  """Flops of the matrix products of cuDNN's attention or cuBLAS, None for another target."""
  if target.startswith("__cudnn$fmha"):
    return _attention_flops(target, instruction, computation)
  if target.startswith(("__cublas$gemm", "__cublas$lt$matmul")):
    left = computation[instruction.operands[0]].arrays[0]
    summed = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', instruction.attributes)
    if summed is None:
      return None
    return 2 * instruction.arrays[0].size * math.prod(
        left.dims[int(axis)] for axis in re.findall(r"\d+", summed.group(1)))
  return None


def _attention_flops(target: str, instruction: Instruction, computation: Computation) -> int | None:
  """Two products of attention forward and five backward, of the pairs that the mask allows.

  What the kernel computes beside them, the rest of tiles on the edge of the mask, is not published.
  """
  text = instruction.attributes
  shape = re.search(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]', text)
  mask = re.search(r'"mask_type":\s*"(\w+)"', text)
  if shape is None or mask is None:
    return None
  batch, heads, queries, keys = map(int, re.findall(r"\d+", shape.group(1)))
  window = re.search(r'"sliding_window_length":\s*(\d+)', text)
  pairs = (causal_pairs(queries, keys, int(window.group(1)) if window else 0)
           if "CAUSAL" in mask.group(1) else queries * keys)
  head_dim = computation[instruction.operands[0]].arrays[0].dims[-1]
  products = 5 if target.endswith("Backward") else 2
  return products * 2 * batch * heads * pairs * head_dim


def causal_pairs(queries: int, keys: int, window: int = 0) -> int:
  """Pairs of a query and a key not behind it, of the last `window` keys alone unless that is 0."""
  return sum(min(i + 1, keys, window or keys) for i in range(queries))
