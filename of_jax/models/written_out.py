"""Attention written out: logits of pairs of tokens, their mask, weights and what they gather.

Enters: queries, keys and values by head. Leaves: arrays as long as the queries. All queries at
once, or some consecutive ones of a sequence.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# float32 logits [batch, heads, queries, keys] -> weights.
FromLogits = Callable[[jax.Array], jax.Array]


def attend(q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, v_BxSxGxK: jax.Array,
           mask_Bx1xTxT: jax.Array | None, softmax: FromLogits, cap: float | None = None,
           scale: float | None = None, drop: Callable[[jax.Array], jax.Array] | None = None,
           is_causal: bool = True, replace: Callable[[jax.Array], jax.Array] = lambda x: x,
           start: jax.Array | int = 0, steps: int | None = None) -> jax.Array:
  """Attention with every step at hand, for what fused kernels do not offer.

  Args:
    k_BxSxGxK, v_BxSxGxK: G divides the H heads of the queries, consecutive ones share a key.
      Longer than the sequence, the first S - T are for every query to see.
    mask_Bx1xTxT: as in Context, or the rows of these queries alone.
    softmax: from logits to weights.
    cap: c, logits become c tanh(logits / c) before the mask (Gemma 2).
    scale: multiplies q k^T, default 1 / sqrt(K).
    drop: dropout of the weights.
    is_causal: whether a query sees no key behind it.
    replace: of the logits of all pairs, before the mask.
    start, steps: as in `masked_logits`.
  """
  weights_BxHxTxS = softmax(masked_logits(q_BxTxHxK, k_BxSxGxK, mask_Bx1xTxT, cap, scale,
                                          start, steps, is_causal, replace))
  if drop is not None:
    weights_BxHxTxS = drop(weights_BxHxTxS)
  v_BxSxHxK = jnp.repeat(v_BxSxGxK, q_BxTxHxK.shape[2] // v_BxSxGxK.shape[2], axis=2)
  return jnp.einsum("bhts,bshk->bthk", weights_BxHxTxS.astype(v_BxSxHxK.dtype), v_BxSxHxK)


def masked_logits(q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, mask_Bx1xTxT: jax.Array | None,
                  cap: float | None, scale: float | None, start: jax.Array | int = 0,
                  steps: int | None = None, is_causal: bool = True,
                  replace: Callable[[jax.Array], jax.Array] = lambda x: x) -> jax.Array:
  """Logits that the softmax reads, [batch, heads, queries, keys]; -inf where a query may not look.

  Args:
    q_BxTxHxK: all queries, or consecutive ones.
    k_BxSxGxK, mask_Bx1xTxT, cap, scale, is_causal, replace: as in `attend`.
    start: number of the first of these queries in its sequence.
    steps: queries of the sequence; default as many as these.
  """
  (_, queries, heads, head_dim), (sources, groups) = q_BxTxHxK.shape, k_BxSxGxK.shape[1:3]
  steps = queries if steps is None else steps
  k_BxSxHxK = jnp.repeat(k_BxSxGxK, heads // groups, axis=2)
  logits_BxHxTxS = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxSxHxK,
                              preferred_element_type=jnp.promote_types(
                                  q_BxTxHxK.dtype, jnp.float32))
  logits_BxHxTxS *= head_dim ** -0.5 if scale is None else scale
  if cap is not None:
    logits_BxHxTxS = cap * jnp.tanh(logits_BxHxTxS / cap)
  logits_BxHxTxS = replace(logits_BxHxTxS)
  allowed = (start + jnp.arange(queries)[:, None] >= jnp.arange(steps) if is_causal
             else jnp.ones((queries, steps), bool))[None, None]
  if mask_Bx1xTxT is not None:
    are_rows = mask_Bx1xTxT.shape[2] == queries < steps
    allowed = allowed & (mask_Bx1xTxT if are_rows else
                         jax.lax.dynamic_slice_in_dim(mask_Bx1xTxT, start, queries, 2))
  extra = ((0, 0), (0, 0), (0, 0), (sources - steps, 0))
  allowed = jnp.pad(allowed, extra, constant_values=True)
  return jnp.where(allowed, logits_BxHxTxS, -jnp.inf)
