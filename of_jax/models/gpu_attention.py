"""Attention on NVIDIA GPUs, in the forms of of_jax.config.gpu_attention, none of which ever holds
all pairs of tokens.

Enters: queries, keys and values by head. Leaves: what each query attends to.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from of_jax.config.gpu_attention import BACKWARD, FORWARD, LEAST, Form, block_size
from of_jax.models import partition
from of_jax.xla import placement


def card() -> str:
  """Names the GPU that a program is traced for; "" where it is traced for none."""
  if placement.platform() != "gpu":
    return ""
  mesh = jax.sharding.get_abstract_mesh()
  kind: str = (jax.devices()[0].device_kind if mesh.empty or mesh.abstract_device is None
               else mesh.abstract_device.device_kind)
  return kind


def keeps(primitive: Any, *_: Any, **params: Any) -> bool:
  """Tells remat policies what the backward pass of fused attention reads: see jax.checkpoint."""
  return (primitive.name == "dot_product_attention_fwd_wrapper"
          or primitive.name == "pallas_call" and params.get("name") == "mha_forward")


def attend(form: Form, q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array,
           documents_BxT: jax.Array | None, window: int | None, scale: float | None,
           is_causal: bool, interpret: bool = False) -> jax.Array:
  """Computes fused attention, the same function as of_jax.models.written_out.attend.

  Args:
    form: `cudnn` or `pallas`, as `choose` has it for these arguments.
    interpret: run the Pallas kernel's instructions by JAX, on any platform.
  """
  scale = q_BxTxHxK.shape[-1] ** -0.5 if scale is None else scale
  run: Callable[..., jax.Array]
  if form == "cudnn":
    run = functools.partial(_by_cudnn, window=window, scale=scale, is_causal=is_causal)
  else:
    run = functools.partial(_by_pallas, scale=scale, is_causal=is_causal, interpret=interpret)
  return partition.of_sequences_and_heads(
      run, q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, documents_BxT)


def splits(q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array) -> bool:
  """Tells whether the mesh splits sequences and heads evenly, as kernels on each device need."""
  batch, _, heads, _ = q_BxTxHxK.shape
  batch_ways, head_ways = placement.ways(placement.BATCH_AXES), placement.ways(("tensor",))
  return batch % batch_ways == 0 and heads % head_ways == 0 and k_BxTxGxK.shape[2] % head_ways == 0


def in_blocks(run: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
              q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, v_BxSxGxK: jax.Array) -> jax.Array:
  """Computes attention of some queries at a time, and again in the backward pass.

  Args:
    run: from some queries, all keys and values and the number of the first query to what these
      queries attend to.
  """
  batch, time, heads, head_dim = q_BxTxHxK.shape
  block = block_size(time)
  # Summed over blocks in the backward pass, so in float32.
  wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (k_BxSxGxK, v_BxSxGxK)]

  @jax.checkpoint
  def of_block(q_BxQxHxK: jax.Array, start: jax.Array) -> jax.Array:
    k, v = (x.astype(k_BxSxGxK.dtype) for x in wide)
    return run(q_BxQxHxK, k, v, start)

  q_NxBxQxHxK = q_BxTxHxK.reshape(batch, -1, block, heads, head_dim).swapaxes(0, 1)
  _, y_NxBxQxHxK = jax.lax.scan(lambda _, xs: (None, of_block(*xs)), None,
                                (q_NxBxQxHxK, jnp.arange(0, time, block)))
  y_BxTxHxK: jax.Array = y_NxBxQxHxK.swapaxes(0, 1).reshape(q_BxTxHxK.shape)
  return y_BxTxHxK


def product_flops(kernel: str, shapes: list[tuple[int, ...]]) -> int | None:
  """Flops of the causal Pallas kernels' matrix products in one run, by name and arguments' shapes.

  Forward two products of each pair of tokens in blocks that hold an allowed pair; backward four for
  keys and values and three for queries. None for a kernel that is not one of them.
  """
  if kernel == "mha_preprocess_backward":
    return 0
  if kernel not in ("mha_forward", "mha_backward"):
    return None
  batch, time, heads, head_dim = shapes[0]
  block, products = ((min(FORWARD, time), 2) if kernel == "mha_forward"
                     else (min(BACKWARD, time), 7))
  side = time // block
  return products * 2 * batch * heads * side * (side + 1) // 2 * block ** 2 * head_dim


def _by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, documents: None, window: int | None,
              scale: float, is_causal: bool) -> jax.Array:
  return jax.nn.dot_product_attention(
      q, k, v, scale=scale, is_causal=is_causal, implementation="cudnn",
      local_window_size=None if window is None else (window - 1, 0))


def _by_pallas(q: jax.Array, k: jax.Array, v: jax.Array, documents: jax.Array | None,
               scale: float, is_causal: bool, interpret: bool) -> jax.Array:
  # Loaded where it is used: few other than GPUs' users have a need of Pallas.
  from jax.experimental.pallas.ops.gpu import attention
  time, heads = q.shape[1:3]
  backward = min(BACKWARD, time)
  blocks = attention.BlockSizes(
      block_q=min(FORWARD, time), block_k=min(FORWARD, time), block_q_dkv=backward,
      block_kv_dkv=backward, block_q_dq=backward, block_kv_dq=backward)
  k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
  segments = None if documents is None else documents.astype(jnp.int32)
  attended: jax.Array = attention.mha(q, k, v, segments, sm_scale=scale, causal=is_causal,
                                      block_sizes=blocks, interpret=interpret)
  return attended


@functools.cache
def cudnn_refuses(dtype: str, head_dim: int) -> str:
  """Says why cuDNN cannot be asked here, as where it is not installed; "" where it can."""
  shape = jax.ShapeDtypeStruct((1, LEAST, 1, head_dim), dtype)
  try:
    jax.eval_shape(functools.partial(_by_cudnn, documents=None, window=None, scale=1.0,
                                     is_causal=True), shape, shape, shape)
  except (RuntimeError, NotImplementedError, ValueError) as error:
    return re.sub(r"\s+", " ", str(error)).strip().rstrip(".") or type(error).__name__
  return ""
