"""Linear attention with decay: a state of fixed size in place of all pairs of tokens."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import at_least_float32, make_norm
from of_jax.models.parameter import Initializer, Linear, attention_std, parameter
from of_jax.models.probe import Context
from of_jax.models.sigma_reparam import SigmaReparamLinear

_LAST = 1e-5


def decay_rates(heads: int) -> tuple[float, ...]:
  """Rate of each head, -log of what a step leaves of the state in the first block: ALiBi's slopes.

  2^(-8 (h + 1) / H) for h from 0; if H is no power of two, those of the next smaller one P and
  then every second one of 2 P.
  """
  power = 2 ** math.floor(math.log2(heads))
  slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
  return tuple(slopes + [2 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
               )[:heads]


def attend_pairs(q_BxTxHxJ: jax.Array, k_BxTxHxJ: jax.Array, v_BxTxHxK: jax.Array,
                 rates_H: jax.Array, mask_Bx1xTxT: jax.Array | None = None,
                 is_causal: bool = True) -> jax.Array:
  """o_t = sum over s of lambda^|t - s| (q_t . k_s) v_s, from all pairs of tokens, in float32.

  Args:
    rates_H: -log lambda of each head.
    mask_Bx1xTxT: true where a token t may see s, beside causality; None for everywhere.
    is_causal: whether s ends at t.
  """
  q, k, v = map(at_least_float32, (q_BxTxHxJ, k_BxTxHxJ, v_BxTxHxK))
  steps = jnp.arange(q.shape[1])
  distance_TxT = steps[:, None] - steps
  decay_HxTxT = jnp.exp(-rates_H[:, None, None] * jnp.abs(distance_TxT))
  allowed = (distance_TxT >= 0 if is_causal else jnp.ones_like(distance_TxT, bool))[None, None]
  if mask_Bx1xTxT is not None:
    allowed = allowed & mask_Bx1xTxT
  scores_BxHxTxT = jnp.where(allowed, jnp.einsum("bthj,bshj->bhts", q, k) * decay_HxTxT, 0)
  return jnp.einsum("bhts,bshk->bthk", scores_BxHxTxT, v)


def attend_chunks(q_BxTxHxJ: jax.Array, k_BxTxHxJ: jax.Array, v_BxTxHxK: jax.Array,
                  rates_H: jax.Array, chunk: int) -> jax.Array:
  """Computes the same, causal, chunk by chunk: all pairs within one, a state for what is before.

  S <- lambda^C S + sum_i lambda^(C - i) k_i v_i^T, [J, K] a head in float32; no power of lambda
  has a negative exponent, so nothing overflows. The cost is linear in T; a chunk of 1 is the
  recurrence.
  """
  batch, steps = q_BxTxHxJ.shape[:2]
  chunks = -(-steps // chunk)

  def split(x: jax.Array) -> jax.Array:
    # Zeros behind the end add nothing to what is read before it.
    x = jnp.pad(at_least_float32(x), ((0, 0), (0, chunks * chunk - steps), (0, 0), (0, 0)))
    return x.reshape(batch, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

  count_Cx1 = jnp.arange(1, chunk + 1)[:, None]
  since_CxH = jnp.exp(-rates_H * count_Cx1)
  until_CxH = jnp.exp(-rates_H * (chunk - count_Cx1))
  whole_Hx1x1 = jnp.exp(-rates_H * chunk)[:, None, None]

  def advance(state_BxHxJxK: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]
              ) -> tuple[jax.Array, jax.Array]:
    q, k, v = part
    before = jnp.einsum("bchj,bhjk->bchk", q * since_CxH[..., None], state_BxHxJxK)
    state = whole_Hx1x1 * state_BxHxJxK + jnp.einsum(
        "bchj,bchk->bhjk", k * until_CxH[..., None], v)
    return state, before + attend_pairs(q, k, v, rates_H)

  parts = split(q_BxTxHxJ), split(k_BxTxHxJ), split(v_BxTxHxK)
  (_, _, _, heads, inner), outer = parts[0].shape, parts[2].shape[-1]
  start = jnp.zeros((batch, heads, inner, outer), parts[2].dtype)
  _, y = jax.lax.scan(advance, start, parts)
  return y.swapaxes(0, 1).reshape(batch, chunks * chunk, heads, outer)[:, :steps]


class LinearAttention(nnx.Module):
  """o_t = sum_{s<=t} lambda^(t-s) (q_t . k_s) v_s; (u * SRMSNorm(o)) W_o (TNL, 2307.14995).

  The gated linear attention of TransNormerLLM, as its released code has it: q and k through SiLU,
  v and u without a nonlinearity, no division by sqrt(K), one norm without parameters over all
  heads. Head h of block l forgets by lambda = exp(-slope_h (1 - l / (L - 1) + 1e-5)), l from 0,
  with ALiBi's slopes (the paper's text has exp(-(8 h / H) (1 - l / L))); a model of one block has
  l / (L - 1) = 0. lambda is not trained.

  With `model.linear_positions` q and k become [x cos(t theta), x sin(t theta)] (LRPE), theta a
  trained number a head and feature: in the first block, or in all. In the others of `first` the
  angle is zero, and their theta does nothing.

  Up to `model.linear_chunk` tokens, and where documents or a model that is not causal ask for it,
  all pairs are computed; else chunks, see `attend_chunks`. The scores are no weights: rows need
  not add up to 1 and may be negative, so metrics of attention's weights are null.
  [batch, time, width] -> [batch, time, width].
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    assert model.head_dim is not None, "resolve the config first"
    heads, head_dim = model.heads, model.head_dim
    linear = Linear if model.sigma_reparam == "none" else SigmaReparamLinear
    std = attention_std(model)

    def project(bias: bool) -> Linear:
      return linear(rngs, (model.width, heads, head_dim), ("embed", "heads", "head_dim"), std,
                    bias=bias or model.linear_bias)

    self.query, self.key = project(model.qk_bias), project(model.qk_bias)
    self.value = project(False)
    self.gate = nnx.Dict(linear=project(False))
    self.out = linear(rngs, (heads, head_dim, model.width), ("heads", "head_dim", "embed"), std,
                      inputs=2, bias=model.linear_bias)
    self.norm = make_norm("srms", rngs, model, heads * head_dim, "heads")
    self.model, self.rates = model, decay_rates(heads)
    self.turns = model.linear_positions != "none"
    if self.turns:
      self.theta = parameter(rngs, (heads, head_dim), _frequencies(heads, head_dim), "bias",
                             ("heads", "head_dim"))

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    q_BxTxHxK = jax.nn.silu(context.linear("attn_query", "attn_in", self.query, x_BxTxD))
    k_BxTxHxK = jax.nn.silu(context.linear("attn_key", "attn_in", self.key, x_BxTxD))
    v_BxTxHxK = context.linear("attn_value", "attn_in", self.value, x_BxTxD)
    u_BxTxHxK = context.linear("attn_gate", "attn_in", self.gate["linear"], x_BxTxD)
    q_BxTxHxK = context.probe_heads("attn_q", q_BxTxHxK)
    k_BxTxHxK = context.probe_heads("attn_k", k_BxTxHxK)
    v_BxTxHxK = context.at_heads("attn_v", v_BxTxHxK)
    context.probe_attention(q_BxTxHxK, k_BxTxHxK, _no_weights)
    q_BxTxHxJ, k_BxTxHxJ = q_BxTxHxK, k_BxTxHxK
    if self.turns:
      q_BxTxHxJ, k_BxTxHxJ = (self._turned(x, context) for x in (q_BxTxHxK, k_BxTxHxK))
    y_BxTxHxK = self._attend(q_BxTxHxJ, k_BxTxHxJ, v_BxTxHxK, context).astype(x_BxTxD.dtype)
    y_BxTxHxK = context.at_heads("attn_context", y_BxTxHxK)
    y_BxTxHxK = self.norm(y_BxTxHxK.reshape(*x_BxTxD.shape[:2], -1), context).reshape(
        y_BxTxHxK.shape)
    y_BxTxHxK = context.at_heads("attn_heads", u_BxTxHxK * y_BxTxHxK)
    return context.linear("attn_output", "attn_heads", self.out, y_BxTxHxK)

  def _attend(self, q_BxTxHxJ: jax.Array, k_BxTxHxJ: jax.Array, v_BxTxHxK: jax.Array,
              context: Context) -> jax.Array:
    depth, chunk = self.model.depth, self.model.linear_chunk
    height = (jnp.asarray(context.layer) - 1) / max(depth - 1, 1)
    rates_H = jnp.asarray(self.rates, jnp.float32) * (1 - height.astype(jnp.float32) + _LAST)
    needs_pairs = context.mask_Bx1xTxT is not None or not context.is_causal
    if needs_pairs or q_BxTxHxJ.shape[1] <= chunk:
      return attend_pairs(q_BxTxHxJ, k_BxTxHxJ, v_BxTxHxK, rates_H, context.mask_Bx1xTxT,
                          context.is_causal)
    return attend_chunks(q_BxTxHxJ, k_BxTxHxJ, v_BxTxHxK, rates_H, chunk)

  def _turned(self, x_BxTxHxK: jax.Array, context: Context) -> jax.Array:
    x = at_least_float32(x_BxTxHxK)
    theta_HxK = self.theta[...]
    if self.model.linear_positions == "first":
      theta_HxK = jnp.where(jnp.asarray(context.layer) == 1, theta_HxK, 0)
    angle = context.positions_BxT[:, :, None, None] * theta_HxK
    return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], -1).astype(x_BxTxHxK.dtype)


def _frequencies(heads: int, head_dim: int) -> Initializer:
  """Initializer with 10000^(-2 j / (H K)), j running over all heads' features."""

  def fill(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    del key
    size = heads * head_dim
    return (10_000.0 ** (-2 * jnp.arange(size, dtype=dtype) / size)).reshape(shape)

  return fill


def _no_weights(q_BxTxHxK: jax.Array, k_BxSxHxK: jax.Array, start: jax.Array
                ) -> tuple[jax.Array, jax.Array]:
  """Says of the logits and weights that there are none: what is NaN is written as null."""
  del start
  (batch, queries, heads, _), keys = q_BxTxHxK.shape, k_BxSxHxK.shape[1]
  none = jnp.full((batch, heads, queries, keys), jnp.nan, jnp.float32)
  return none, none
