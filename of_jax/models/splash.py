"""Attention on TPU by JAX's splash kernels, which never hold the weights of all pairs of tokens.

Written out, [batch, heads, time, time] logits are most of what a step at 4,096 tokens moves. Where
these kernels serve they are used; elsewhere attention stays as it is, to the bit.
"""

import functools
import math
import re
from typing import Any

import jax

from of_jax.models import partition
from of_jax.xla import placement

# What the kernels save for the backward pass, by the name that remat policies know it by.
RESIDUALS = "attention_residuals"
# Queries or keys that a register holds side by side, which blocks are multiples of.
_LANES = 128
# A kernel's blocks of queries and of keys: 512 x 512 logits take 1 MiB of the chip's memory.
_LARGEST_BLOCK = 512


def serves(q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array) -> bool:
  """Tells whether the kernels take such queries and keys, and are worth it.

  They are where the weights of a token, T for each head, outnumber the 4 K for each head that the
  MLP keeps of it: below that the logits are not what a step's memory goes to.
  """
  batch, time, heads, head_dim = q_BxTxHxK.shape
  batch_ways, head_ways = placement.ways(placement.BATCH_AXES), placement.ways(("tensor",))
  return (placement.platform() == "tpu" and time > 4 * head_dim and time % _LANES == 0
          and q_BxTxHxK.dtype.itemsize <= 4 and k_BxTxGxK.shape[1] == time
          and batch % batch_ways == 0 and heads % head_ways == 0
          and k_BxTxGxK.shape[2] % head_ways == 0)


def attend(q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array,
           documents_BxT: jax.Array | None = None, window: int | None = None,
           cap: float | None = None, scale: float | None = None, interpret: bool = False
           ) -> jax.Array:
  """Computes causal attention, the same function as of_jax.models.written_out.attend.

  Args:
    documents_BxT: attention stays within a document.
    window: tokens that a query sees, itself included.
    cap, scale: as there. The kernels have no scale: queries are multiplied by it, and rounded to
      their type once more.
    interpret: run the kernels' instructions by JAX, on any platform.
  """
  scale = q_BxTxHxK.shape[-1] ** -0.5 if scale is None else scale
  run = functools.partial(_run, window=window, cap=cap, interpret=interpret)
  return partition.of_sequences_and_heads(
      run, (q_BxTxHxK * scale).astype(q_BxTxHxK.dtype), k_BxTxGxK, v_BxTxGxK, documents_BxT)


def _run(q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array,
         documents_BxT: jax.Array | None, window: int | None, cap: float | None,
         interpret: bool) -> jax.Array:
  """Computes one device's part of `attend`, of queries that are scaled."""
  # Loaded where it is used: few other than TPUs' users have a need of Pallas.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_kernel,
      splash_attention_mask,
  )
  time, heads = q_BxTxHxK.shape[1:3]
  shape = (time, time)
  mask = (splash_attention_mask.CausalMask(shape) if window is None else
          splash_attention_mask.LocalMask(shape, (window - 1, 0), 0))
  block = block_size(time)
  sizes = splash_attention_kernel.BlockSizes(
      block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block,
      block_kv_dq=block)
  kernel = splash_attention_kernel.make_splash_mha(
      splash_attention_mask.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1,
      q_seq_shards=1, attn_logits_soft_cap=cap, residual_checkpoint_name=RESIDUALS,
      interpret=interpret)

  def of_sequence(q: jax.Array, k: jax.Array, v: jax.Array, documents: jax.Array | None) -> Any:
    segments = None if documents is None else splash_attention_kernel.SegmentIds(
        documents, documents)
    return kernel(*(x.swapaxes(0, 1) for x in (q, k, v)), segment_ids=segments).swapaxes(0, 1)

  attended: jax.Array = jax.vmap(of_sequence)(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, documents_BxT)
  return attended


def product_flops(kernel: str, shapes: list[tuple[int, ...]], window: int | None) -> int | None:
  """Flops of a kernel's matrix products in one run, by its name and its arguments' shapes.

  A block takes the two products of attention forward, and backward the logits and d weights again
  with one more for queries, two more for keys and values. None for a kernel that is not splash's.
  """
  phase = re.fullmatch(r"splash_mha_(fwd|dq|dkv)(_segmented)?(_no)?_residuals", kernel)
  if phase is None:
    return None
  # Queries are the largest of those with most axes: three, as what says which blocks of keys to
  # visit has, where JAX leaves out the axis of a batch of one sequence.
  *batch, heads, time, head_dim = max(shapes, key=lambda shape: (len(shape), math.prod(shape)))
  products = {"fwd": 2, "dq": 3, "dkv": 4}[phase.group(1)]
  flops: int = (math.prod(batch) * heads * blocks(time, window) * products
                * 2 * block_size(time) ** 2 * head_dim)
  return flops


def block_size(time: int) -> int:
  """Size of the largest block that divides the sequence."""
  return max(block for block in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if time % block == 0)


def blocks(time: int, window: int | None) -> int:
  """Number of a head's blocks of logits that a kernel computes: those with a pair allowed."""
  side, count = block_size(time), time // block_size(time)
  # Of block row i, column j: the query farthest back sees keys from its own less the window on.
  return sum(1 for i in range(count) for j in range(i + 1)
             if window is None or i * side - (window - 1) < (j + 1) * side)
