"""Sums for the basic metrics of a site, by a kernel that reads a TPU's main memory once.

As XLA has it, each pass of the median's bisection reads the whole array again, 11 times in all,
and each sum over tokens once more. This kernel brings a block of tokens on the chip and does all
of it there; only sums leave. Other platforms, and sites that it does not fit, have `Activations`.

How it works. `ReadOnce` is an `Activations` whose costly properties come out of the kernel; what
they have in common is computed at the first use, what is not asked for still comes from the base.
The kernel's grid goes over blocks of 128 tokens. A block is [128, width] in registers and on-chip
memory: its largest |x|, its median (the same bisection, a bit at a time, since a pass costs no
memory here) and its centred values are computed there. The sums over tokens by group are a matrix
product of [8, 128] weights, of which rows 0 and 1 are the groups FIRST and REST as 0 and 1, with
the block. All blocks of the grid write to the same output block, which therefore stays on the chip
until the last; what is one number a token is kept by lane and reduced outside. On a mesh each
device runs the kernel on its own tokens (`shard_map`), and the sums of all are added.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from of_jax.telemetry.activations import (
    LARGEST_SQUARED,
    MINUS_INFINITY,
    UNRESOLVED_BITS,
    Activations,
)
from of_jax.xla import placement
from of_jax.xla.reductions import as_float

# Tokens of a block, and multiples of the width: what a register of the chip holds side by side.
_LANES = 128
# The widest site: about ten float32 arrays of a block of 128 tokens lie on the chip at once.
_WIDEST = 8192
_ON_CHIP_BYTES = 64 * 2 ** 20
_LARGEST_BITS = np.iinfo(np.int32).max
# Rows that a block of sums has; the first two are the groups FIRST and REST.
_ROWS = 8
KERNEL = "activation_sums"


def read(x_BxTxD: jax.Array, first_BxT: jax.Array | None, weights_BxT: jax.Array | None = None
         ) -> Activations:
  """The activations of one site, as is best for what this is traced for."""
  return (ReadOnce if serves(x_BxTxD) else Activations)(x_BxTxD, first_BxT, weights_BxT)


def serves(x_BxTxD: jax.Array) -> bool:
  """Whether the kernel takes such an array, whose batch the mesh may split."""
  batch, time, width = x_BxTxD.shape
  ways = placement.ways(placement.BATCH_AXES)
  return (placement.platform() == "tpu" and batch % ways == 0
          and (batch // ways * time) % _LANES == 0 and width % _LANES == 0 and width <= _WIDEST
          and x_BxTxD.dtype in (jnp.float32, jnp.bfloat16))


def flops(x_NxD: tuple[int, ...], dtype: str) -> tuple[int, int]:
  """Flops of one run of the kernel, and the matrix products among them, as XLA counts them.

  The median's passes compare and add, and so does the count at their end; |x|, four comparisons
  and selections and two extremes for the median's neighbours and the maximum; of the sums a
  selection, a sum, a difference and two squares, then three products with the groups.
  """
  size, products = math.prod(x_NxD), 3 * 2 * _ROWS * math.prod(x_NxD)
  passes = 31 - _unresolved(dtype)
  return size * (2 * (passes + 1) + 7 + 5) + products, products


class ReadOnce(Activations):
  """Activations whose sums come out of one kernel; everything else is computed as there.

  The numbers are the same but for the order in which sums are taken.
  """

  def __init__(self, x_BxTxD: jax.Array, first_BxT: jax.Array | None,
               weights_BxT: jax.Array | None = None, interpret: bool = False):
    """Args:
      interpret: run the kernel's instructions by JAX, on any platform.
    """
    super().__init__(x_BxTxD, first_BxT, weights_BxT)
    self._given_BxTxD, self._interpret = x_BxTxD, interpret

  @functools.cached_property
  def _sums(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[sums of x, of x^2, of centred x^2; groups; width], and by group the sums of max over median
    and the bits of the largest |x|."""
    run = functools.partial(_sums_of, interpret=self._interpret)
    arrays = (self._given_BxTxD, self.groups_GxBxT)
    if not placement.is_split():
      return run(*arrays)

    def of_device(x_BxTxD: jax.Array, groups_GxBxT: jax.Array) -> Any:
      sums_SxGxD, ratio_G, max_bits_G = run(x_BxTxD, groups_GxBxT)
      return (*jax.lax.psum((sums_SxGxD, ratio_G), placement.BATCH_AXES),
              jax.lax.pmax(max_bits_G, placement.BATCH_AXES))

    batch = placement.BATCH_AXES
    summed: tuple[jax.Array, jax.Array, jax.Array] = jax.shard_map(
        of_device, in_specs=(PartitionSpec(batch), PartitionSpec(None, batch)),
        out_specs=PartitionSpec(), check_vma=False)(*arrays)
    return summed

  @functools.cached_property
  def max_G(self) -> jax.Array:
    return as_float(self._sums[2])

  @functools.cached_property
  def is_within_G(self) -> jax.Array:
    # False for NaN.
    is_within_G: jax.Array = self.max_G <= LARGEST_SQUARED
    return is_within_G

  @functools.cached_property
  def sum_ratio_G(self) -> jax.Array:
    return self._sums[1]

  def _sum(self, index: int) -> jax.Array:
    return jnp.where(self.is_within_G[:, None], self._sums[0][index], jnp.nan)

  @functools.cached_property
  def sum_GxD(self) -> jax.Array:
    return self._sum(0)

  @functools.cached_property
  def sum_square_GxD(self) -> jax.Array:
    return self._sum(1)

  @functools.cached_property
  def sum_square_centred_GxD(self) -> jax.Array:
    return self._sum(2)


def _sums_of(x_BxTxD: jax.Array, groups_GxBxT: jax.Array, interpret: bool
             ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One device's part of `ReadOnce._sums`."""
  # Loaded where it is used: few other than TPUs' users have a need of Pallas.
  from jax.experimental import pallas
  from jax.experimental.pallas import tpu
  width = x_BxTxD.shape[-1]
  x_NxD = x_BxTxD.reshape(-1, width)
  blocks = x_NxD.shape[0] // _LANES
  # Of a single sequence the compiler keeps the stream neuron by neuron: it would be copied, once
  # into the other order and once back.
  by_neuron = x_BxTxD.shape[0] == 1
  x_block = (pallas.BlockSpec((width, _LANES), lambda i: (0, i)) if by_neuron else
             pallas.BlockSpec((_LANES, width), lambda i: (i, 0)))
  groups = groups_GxBxT.shape[0]
  weights_ExN = jnp.pad(groups_GxBxT.reshape(groups, -1).astype(jnp.float32),
                        ((0, _ROWS - groups), (0, 0)))
  whole = [pallas.BlockSpec(shape, lambda i, rank=len(shape): (0,) * rank)
           for shape in ((3, _ROWS, width), (_ROWS, _LANES), (_ROWS, _LANES))]
  sums_SxExD, ratio_ExN, max_bits_ExN = pallas.pallas_call(
      functools.partial(_kernel, 0 if by_neuron else 1), grid=(blocks,), name=KERNEL,
      in_specs=[x_block, pallas.BlockSpec((_ROWS, _LANES), lambda i: (0, i))],
      out_specs=whole,
      out_shape=[jax.ShapeDtypeStruct((3, _ROWS, width), jnp.float32),
                 jax.ShapeDtypeStruct((_ROWS, _LANES), jnp.float32),
                 jax.ShapeDtypeStruct((_ROWS, _LANES), jnp.int32)],
      compiler_params=tpu.CompilerParams(vmem_limit_bytes=_ON_CHIP_BYTES),
      interpret=interpret)(x_NxD.T if by_neuron else x_NxD, weights_ExN)
  return (sums_SxExD[:, :groups], jnp.sum(ratio_ExN[:groups], -1),
          jnp.max(max_bits_ExN[:groups], -1))


def _kernel(width_axis: int, x_ref: Any, weights_ref: Any, sums_ref: Any, ratio_ref: Any,
            max_bits_ref: Any) -> None:
  """Adds a block of 128 tokens to the sums, which stay on the chip from block to block.

  `width_axis` of x_ref is 1 for [tokens, width], 0 for [width, tokens]; N and D below are in that
  order.
  """
  from jax.experimental import pallas

  @pallas.when(pallas.program_id(0) == 0)
  def begin() -> None:
    sums_ref[...] = jnp.zeros_like(sums_ref)
    ratio_ref[...] = jnp.zeros_like(ratio_ref)
    max_bits_ref[...] = jnp.full_like(max_bits_ref, MINUS_INFINITY)

  raw_NxD = x_ref[...].astype(jnp.float32)
  bits_NxD = jax.lax.bitcast_convert_type(jnp.abs(raw_NxD), jnp.int32)
  max_bits_Nx1 = jnp.max(bits_NxD, width_axis, keepdims=True)
  median_Nx1 = _median(bits_NxD, _unresolved(x_ref.dtype), width_axis)
  max_Nx1 = as_float(max_bits_Nx1)

  def by_lane(x_Nx1: jax.Array) -> jax.Array:
    """[1, N]: a token a lane, as in what is kept."""
    return x_Nx1 if width_axis == 0 else jnp.broadcast_to(x_Nx1, (_LANES, _LANES)).T[:1]

  weights_ExN = weights_ref[...]
  ratio_ref[...] += jnp.where(weights_ExN > 0, by_lane(max_Nx1 / median_Nx1), 0)
  max_bits_ref[...] = jnp.maximum(
      max_bits_ref[...], jnp.where(weights_ExN > 0, by_lane(max_bits_Nx1), MINUS_INFINITY))
  x_NxD = jnp.where(max_Nx1 <= LARGEST_SQUARED, raw_NxD, 0)
  centred_NxD = x_NxD - jnp.mean(x_NxD, width_axis, keepdims=True)
  for i, values_NxD in enumerate((x_NxD, jnp.square(x_NxD), jnp.square(centred_NxD))):
    sums_ref[i] += jax.lax.dot_general(
        weights_ExN, values_NxD, (((1,), (1 - width_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _unresolved(dtype: Any) -> int:
  # bfloat16 has 16 bits less, and no two values share a bucket of them.
  return 16 if jnp.dtype(dtype) == jnp.bfloat16 else UNRESOLVED_BITS


def _median(bits_NxD: jax.Array, unresolved: int, width_axis: int) -> jax.Array:
  """Finds the median as `Activations` has it, a bit at a time: passes here are over registers."""
  width = bits_NxD.shape[width_axis]
  lower_rank = (width - 1) // 2
  shape_Nx1 = tuple(1 if axis == width_axis else n for axis, n in enumerate(bits_NxD.shape))

  def count_below(bound_Nx1: jax.Array) -> jax.Array:
    return jnp.sum((bits_NxD < bound_Nx1).astype(jnp.int32), width_axis, keepdims=True)

  def next_bit(i: jax.Array, start_Nx1: jax.Array) -> jax.Array:
    middle_Nx1 = start_Nx1 + (jnp.int32(1) << (30 - i))
    return jnp.where(count_below(middle_Nx1) > lower_rank, start_Nx1, middle_Nx1)

  start_Nx1 = jax.lax.fori_loop(
      0, 31 - unresolved, next_bit, jnp.zeros_like(bits_NxD, shape=shape_Nx1))
  end_Nx1 = start_Nx1 + (1 << unresolved)
  below_NxD = bits_NxD < end_Nx1
  lower_Nx1 = jnp.max(jnp.where(below_NxD, bits_NxD, 0), width_axis, keepdims=True)
  above_Nx1 = jnp.min(jnp.where(below_NxD, _LARGEST_BITS, bits_NxD), width_axis, keepdims=True)
  # An odd width has one middle value; so has an even one with both in the bucket.
  is_one = (count_below(end_Nx1) > lower_rank + 1) | bool(width % 2)
  return as_float(lower_Nx1) / 2 + as_float(jnp.where(is_one, lower_Nx1, above_Nx1)) / 2
