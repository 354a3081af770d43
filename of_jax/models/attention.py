"""Causal multi-head attention with the entropy regulation that a config asks for."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import make_norm
from of_jax.models.parameter import Linear
from of_jax.models.probe import Context, flatten_heads


def rotate(x_BxTxHxK: jax.Array, positions_BxT: jax.Array, theta: float) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, 2104.09864, eq. 34).

  Neuron i of the first half of the head is paired with neuron i of the second half and turned
  by the angle position x theta^(-2i / K).
  """
  half = x_BxTxHxK.shape[-1] // 2
  frequencies_K = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles_BxTx1xK = positions_BxT[:, :, None, None].astype(jnp.float32) * frequencies_K
  cos, sin = jnp.cos(angles_BxTx1xK), jnp.sin(angles_BxTx1xK)
  a, b = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxTxHxK.dtype)


def capped_attention(q_BxTxHxK: jax.Array, k_BxTxHxK: jax.Array, v_BxTxHxK: jax.Array,
                     mask_Bx1xTxT: jax.Array | None, cap: float) -> jax.Array:
  """Causal attention whose logits are c tanh(logits / c), capped before masking (Gemma 2)."""
  steps, head_dim = q_BxTxHxK.shape[1], q_BxTxHxK.shape[3]
  logits_BxHxTxT = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxTxHxK,
                              preferred_element_type=jnp.float32) * head_dim ** -0.5
  logits_BxHxTxT = cap * jnp.tanh(logits_BxHxTxT / cap)
  allowed = jnp.tril(jnp.ones((steps, steps), bool))
  if mask_Bx1xTxT is not None:
    allowed = allowed & mask_Bx1xTxT
  logits_BxHxTxT = jnp.where(allowed, logits_BxHxTxT, -jnp.inf)
  weights_BxHxTxT = jax.nn.softmax(logits_BxHxTxT, -1).astype(v_BxTxHxK.dtype)
  return jnp.einsum("bhts,bshk->bthk", weights_BxHxTxT, v_BxTxHxK)


class Attention(nnx.Module):
  """softmax(q k^T / sqrt(K) + causal mask) v, then an output projection.

  Queries and keys may be normed over the head dimension (QK-norm, Dehghani et al. 2023; He et
  al. 2024, Sec. 3) with a gain shared by the heads, or the logits capped by a tanh.
  [batch, time, width] -> [batch, time, width].
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    assert model.head_dim is not None, "resolve the config first"
    heads, head_dim = model.heads, model.head_dim

    def project(bias: bool) -> Linear:
      return Linear(rngs, (model.width, heads, head_dim), ("embed", "heads", "head_dim"),
                    model.init_std, bias=bias or model.linear_bias)

    self.query, self.key = project(model.qk_bias), project(model.qk_bias)
    self.value = project(False)
    self.out = Linear(rngs, (heads, head_dim, model.width), ("heads", "head_dim", "embed"),
                      model.init_std, inputs=2, bias=model.linear_bias)
    self.has_qk_norm = model.qk_norm != "none"
    if self.has_qk_norm:
      self.query_norm = make_norm(model.qk_norm, rngs, model, head_dim, "head_dim")
      self.key_norm = make_norm(model.qk_norm, rngs, model, head_dim, "head_dim")
    self.rope_theta = model.rope_theta if model.positions == "rotary" else None
    self.cap = model.attention_cap

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    q_BxTxHxK, k_BxTxHxK = self.query(x_BxTxD), self.key(x_BxTxD)
    v_BxTxHxK = self.value(x_BxTxD)
    if self.has_qk_norm:
      q_BxTxHxK = self.query_norm(q_BxTxHxK, context)
      k_BxTxHxK = self.key_norm(k_BxTxHxK, context)
    if self.rope_theta is not None:
      q_BxTxHxK = rotate(q_BxTxHxK, context.positions_BxT, self.rope_theta)
      k_BxTxHxK = rotate(k_BxTxHxK, context.positions_BxT, self.rope_theta)
    context.probe("attn_q", flatten_heads(q_BxTxHxK))
    context.probe("attn_k", flatten_heads(k_BxTxHxK))
    if self.cap is None:
      y_BxTxHxK = jax.nn.dot_product_attention(
          q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, mask=context.mask_Bx1xTxT, is_causal=True)
    else:
      y_BxTxHxK = capped_attention(
          q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, context.mask_Bx1xTxT, self.cap)
    return self.out(y_BxTxHxK)
