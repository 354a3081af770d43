"""Causal multi-head attention, its parts chosen by name: see Attention."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.config import gpu_attention as forms
from of_jax.models import gpu_attention, splash
from of_jax.models.gates import make_gate
from of_jax.models.norms import Norm, at_least_float32, make_norm
from of_jax.models.parameter import Linear, attention_std, normal, parameter
from of_jax.models.probe import Context, flatten_heads
from of_jax.models.rope_scaling import frequency_scale
from of_jax.models.sigma_reparam import SigmaReparamLinear
from of_jax.models.softmaxes import make_softmax
from of_jax.models.written_out import attend, masked_logits


def rotate(x_BxTxHxK: jax.Array, positions_BxT: jax.Array, theta: float, fraction: float = 1.0,
           scale: Sequence[float] | None = None, gain: float = 1.0) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, 2104.09864, eq. 34).

  Neuron i of the first half of the head is paired with neuron i of the second half and turned
  by the angle position x theta^(-2i / K). With a fraction below 1 this is done to the first
  K = fraction x head_dim neurons, as to a head of that size (GPT-NeoX), and the others stay.
  With a scale, of_jax.models.rope_scaling's, angle i is multiplied by its entry i. What turns is
  multiplied by the gain.
  """
  if fraction < 1:
    turned, still = jnp.split(x_BxTxHxK, [int(x_BxTxHxK.shape[-1] * fraction)], axis=-1)
    return jnp.concatenate([rotate(turned, positions_BxT, theta, 1.0, scale, gain), still], -1)
  half = x_BxTxHxK.shape[-1] // 2
  x = at_least_float32(x_BxTxHxK)
  frequencies_K = theta ** (-jnp.arange(half, dtype=x.dtype) / half)
  if scale is not None:
    frequencies_K *= jnp.asarray(scale, x.dtype)
  angles_BxTx1xK = positions_BxT[:, :, None, None].astype(x.dtype) * frequencies_K
  cos, sin = jnp.cos(angles_BxTx1xK), jnp.sin(angles_BxTx1xK)
  if gain != 1:
    cos, sin = gain * cos, gain * sin
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxTxHxK.dtype)


class KeyValueSink(nnx.Module):
  """w = softmax(q [k', k]^T / sqrt(K)), o = w [v', v] (Sun et al. 2024, 2402.17762, Sec. 5).

  A learned key k' and value v' a head, which every query may attend to beside the tokens: the
  first token need not serve as the sink. Drawn like matrices, N(0, init_std^2), but without
  decay, being offsets. Neither QK-norm nor rotary positions act on k'.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    assert model.kv_heads is not None and model.head_dim is not None, "resolve the config first"
    shape, axes = (model.kv_heads, model.head_dim), ("heads", "head_dim")
    self.key = parameter(rngs, shape, normal(model.init_std), "bias", axes)
    self.value = parameter(rngs, shape, normal(model.init_std), "bias", axes)

  def prepend(self, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts the learned key and value in front, [k', k] and [v', v], one longer in time."""

    def join(first_GxK: jax.Array, x_BxTxGxK: jax.Array) -> jax.Array:
      shape = (x_BxTxGxK.shape[0], 1, *first_GxK.shape)
      first = jnp.broadcast_to(first_GxK.astype(x_BxTxGxK.dtype), shape)
      return jnp.concatenate([first, x_BxTxGxK], 1)

    return join(self.key[...], k_BxTxGxK), join(self.value[...], v_BxTxGxK)


class Attention(nnx.Module):
  """softmax(q k^T / sqrt(K) + mask) v, then an output projection; causal where the context is.

  What a config may change, each by its own field:
    kv_heads: fewer keys and values than queries, which share them in groups (Ainslie et al.
      2023, 2305.13245).
    qk_norm: queries and keys are normed over the head dimension (Dehghani et al. 2023; He et al.
      2024, Sec. 3), with a gain shared by the heads; or, by `qk_norm_over`, all heads together
      (OLMo 2, 2501.00656).
    attention_scale, attention_cap, attention_softmax, attention_sink: of the logits, of the step
      from them to the weights, of what there is to attend to.
    attention_clip: queries, keys and values, before they turn (OLMo, 2402.00838).
    attention_window: how far back a query sees, in all blocks or all but every
      `full_attention_every`-th (Gemma 2, 2408.00118).
    attention_gate: of the heads' outputs.
    attention_dropout: of the weights, in training. What the probe sees of them is not dropped.
    sigma_reparam: of all four matrices.
    attention_keys, attention_values: fewer matrices: one for queries and keys, none for keys, none
      for values and outputs (2410.13732).
  [batch, time, width] -> [batch, time, width].
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    assert model.kv_heads is not None and model.head_dim is not None, "resolve the config first"
    head_dim = model.head_dim
    linear = Linear if model.sigma_reparam == "none" else SigmaReparamLinear
    std = attention_std(model)

    def project(heads: int, bias: bool) -> Linear:
      return linear(rngs, (model.width, heads, head_dim), ("embed", "heads", "head_dim"),
                    std, bias=bias or model.linear_bias)

    self.keys, self.values = model.attention_keys, model.attention_values
    self.query = project(model.heads, model.qk_bias)
    if self.keys == "own":
      self.key = project(model.kv_heads, model.qk_bias)
    if self.values == "own":
      self.value = project(model.kv_heads, False)
      self.out = linear(rngs, (model.heads, head_dim, model.width), ("heads", "head_dim", "embed"),
                        std, inputs=2, bias=model.linear_bias)
    self.has_qk_norm = model.qk_norm != "none"
    if self.has_qk_norm:
      self.norm_heads_together = model.qk_norm_over == "width"

      def norm(heads: int) -> Norm:
        size, axis = ((heads * head_dim, "heads") if self.norm_heads_together
                      else (head_dim, "head_dim"))
        return make_norm(model.qk_norm, rngs, model, size, axis)

      self.query_norm = norm(model.heads)
      if self.keys != "queries":
        self.key_norm = norm(model.kv_heads)
    self.model, self.is_rotary = model, model.positions == "rotary"
    self.scale, self.cap = model.attention_scale, model.attention_cap
    self.clip = model.attention_clip
    self.window, self.full_every = model.attention_window, model.full_attention_every
    self.softmax = make_softmax(model)
    self.gate = make_gate(rngs, model)
    self.dropout = model.attention_dropout
    self.has_sink = model.attention_sink != "none"
    if self.has_sink:
      self.sink = KeyValueSink(rngs, model)

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    q_BxTxHxK = context.linear("attn_query", "attn_in", self.query, x_BxTxD)
    k_BxTxGxK, v_BxTxGxK = self._keys_and_values(q_BxTxHxK, x_BxTxD, context)
    if self.clip is not None:
      q_BxTxHxK, k_BxTxGxK, v_BxTxGxK = (
          jnp.clip(x, -self.clip, self.clip) for x in (q_BxTxHxK, k_BxTxGxK, v_BxTxGxK))
    if self.has_qk_norm:
      q_BxTxHxK = self._norm(self.query_norm, q_BxTxHxK, context)
      k_BxTxGxK = self._norm(self.query_norm if self.keys == "queries" else self.key_norm,
                             k_BxTxGxK, context)
    if self.is_rotary:
      q_BxTxHxK, k_BxTxGxK = (self._rotate(x, context) for x in (q_BxTxHxK, k_BxTxGxK))
    q_BxTxHxK = context.probe_heads("attn_q", q_BxTxHxK)
    k_BxTxGxK = context.probe_heads("attn_k", k_BxTxGxK)
    v_BxTxGxK = context.at_heads("attn_v", v_BxTxGxK)
    if self.has_sink:
      k_BxTxGxK, v_BxTxGxK = self.sink.prepend(k_BxTxGxK, v_BxTxGxK)
    mask_Bx1xTxT = self._mask(context, x_BxTxD.shape[1])
    self._probe_weights(q_BxTxHxK, k_BxTxGxK, mask_Bx1xTxT, context)
    drops = bool(self.dropout) and context.dropout_key is not None
    form = self._form(q_BxTxHxK, k_BxTxGxK, context, drops)
    if form == "splash":
      y_BxTxHxK = splash.attend(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, context.documents_BxT,
                                self.window, self.cap, self.scale)
    elif form in ("cudnn", "pallas"):
      y_BxTxHxK = gpu_attention.attend(form, q_BxTxHxK, k_BxTxGxK, v_BxTxGxK,
                                       context.documents_BxT, self.window, self.scale,
                                       context.is_causal)
    elif form == "blocks":
      y_BxTxHxK = self._attend_in_blocks(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, context)
    elif form == "library":
      y_BxTxHxK = jax.nn.dot_product_attention(
          q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, mask=mask_Bx1xTxT, is_causal=context.is_causal,
          scale=self.scale)
    else:
      def softmax(logits_BxHxTxS: jax.Array) -> jax.Array:
        logits_BxHxTxS = context.at("attn_logits", logits_BxHxTxS)
        return context.at("attn_weights", self.softmax(logits_BxHxTxS))

      y_BxTxHxK = attend(
          q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, mask_Bx1xTxT, softmax, self.cap, self.scale,
          lambda weights: context.dropout(weights, self.dropout), context.is_causal,
          lambda logits: context.at("attn_scores", logits))
      y_BxTxHxK = context.at_heads("attn_context", y_BxTxHxK)
    y_BxTxHxK = context.at_heads("attn_heads", self.gate(y_BxTxHxK, x_BxTxD, context))
    if self.values == "input":
      return y_BxTxHxK.reshape(x_BxTxD.shape)
    return context.linear("attn_output", "attn_heads", self.out, y_BxTxHxK)

  def _keys_and_values(self, q_BxTxHxK: jax.Array, x_BxTxD: jax.Array, context: Context
                       ) -> tuple[jax.Array, jax.Array]:

    def slices() -> jax.Array:
      return x_BxTxD.reshape(*x_BxTxD.shape[:2], -1, q_BxTxHxK.shape[-1])

    if self.keys == "own":
      k_BxTxGxK = context.linear("attn_key", "attn_in", self.key, x_BxTxD)
    else:
      k_BxTxGxK = q_BxTxHxK if self.keys == "queries" else slices()
    if self.values == "own":
      return k_BxTxGxK, context.linear("attn_value", "attn_in", self.value, x_BxTxD)
    return k_BxTxGxK, slices()

  def _form(self, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, context: Context, drops: bool
            ) -> forms.Form | Literal["splash", "library"]:
    """Chooses how to compute it: `splash` on TPUs, of_jax.models.gpu_attention's forms on GPUs,
    `library`, which is `whole` in fewer words, or `whole`."""
    is_plain = self.softmax.is_plain and not drops and context.numerics is None
    if is_plain and self._is_for_splash(context) and splash.serves(q_BxTxHxK, k_BxSxGxK):
      return "splash"
    card = gpu_attention.card()
    if card:
      form = self._choose(card, q_BxTxHxK, k_BxSxGxK, context, drops).form
      if form != "whole":
        return form
    # The library's softmax is computed in float32, also of float64.
    narrow = q_BxTxHxK.dtype != jnp.float64
    return ("library" if is_plain and self.cap is None and not self.has_sink and narrow
            else "whole")

  def _choose(self, card: str, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, context: Context,
              drops: bool) -> forms.Choice:
    others = {"a mask of its own": context.mask_Bx1xTxT is not None and
              context.documents_BxT is None,
              "a mesh that splits heads or sequences unevenly": not gpu_attention.splits(
                  q_BxTxHxK, k_BxSxGxK)}
    case = forms.case_of(
        self.model, q_BxTxHxK.shape[1], card, is_causal=context.is_causal,
        documents=context.documents_BxT is not None, drops=drops,
        others=tuple(name for name, is_so in others.items() if is_so),
        unique=() if context.numerics is None else ("numbers of a quantised model",))
    case = dataclasses.replace(case, dtype=q_BxTxHxK.dtype.name, head_dim=q_BxTxHxK.shape[-1])
    choice = forms.choose(case)
    if choice.form == "cudnn" and (
        refused := gpu_attention.cudnn_refuses(case.dtype, case.head_dim)):
      choice = forms.choose(dataclasses.replace(case, no_cudnn=refused))
    return choice

  def _attend_in_blocks(self, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, v_BxSxGxK: jax.Array,
                        context: Context) -> jax.Array:
    steps = q_BxTxHxK.shape[1]

    def run(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array) -> jax.Array:
      return attend(q, k, v, self._mask_rows(context, start, q.shape[1], steps), self.softmax,
                    self.cap, self.scale, is_causal=context.is_causal, start=start, steps=steps)

    return gpu_attention.in_blocks(run, q_BxTxHxK, k_BxSxGxK, v_BxSxGxK)

  def _is_for_splash(self, context: Context) -> bool:
    """Tells whether the kernels compute this function: all is known but who is in a document."""
    is_known = context.mask_Bx1xTxT is None or context.documents_BxT is not None
    return (context.is_causal and self.softmax.is_plain and not self.has_sink and is_known
            and (self.window is None or self.full_every is None))

  def _probe_weights(self, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array,
                     mask_Bx1xTxT: jax.Array | None, context: Context) -> None:
    steps = q_BxTxHxK.shape[1]

    def weigh(q: jax.Array, k: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
      logits = masked_logits(q, k, mask_Bx1xTxT, self.cap, self.scale, start, steps,
                             context.is_causal)
      return logits, self.softmax(logits)

    context.probe_attention(q_BxTxHxK, k_BxSxGxK, weigh)

  def _rotate(self, x_BxTxHxK: jax.Array, context: Context) -> jax.Array:
    model, steps = self.model, x_BxTxHxK.shape[1]
    return rotate(x_BxTxHxK, context.positions_BxT, model.rope_theta, model.rope_fraction,
                  frequency_scale(model, steps), model.rope_gain)

  def _norm(self, norm: Norm, x_BxTxHxK: jax.Array, context: Context) -> jax.Array:
    if self.norm_heads_together:
      return norm(flatten_heads(x_BxTxHxK), context).reshape(x_BxTxHxK.shape)
    return norm(x_BxTxHxK, context)

  def _mask(self, context: Context, steps: int) -> jax.Array | None:
    """Mask of the keys that the context and the window both allow."""
    if self.window is None:
      return context.mask_Bx1xTxT
    index_T = jnp.arange(steps)
    near_1x1xTxT = self._near(index_T[:, None] - index_T, context)
    return near_1x1xTxT if context.mask_Bx1xTxT is None else context.mask_Bx1xTxT & near_1x1xTxT

  def _mask_rows(self, context: Context, start: jax.Array, queries: int, steps: int
                 ) -> jax.Array | None:
    """Computes the rows of `_mask` of some queries, without the others."""
    rows_Bx1xQxT = None
    if context.documents_BxT is not None:
      documents_BxT = context.documents_BxT
      own_BxQ = jax.lax.dynamic_slice_in_dim(documents_BxT, start, queries, 1)
      rows_Bx1xQxT = (own_BxQ[:, :, None] == documents_BxT[:, None])[:, None]
    elif context.mask_Bx1xTxT is not None:
      rows_Bx1xQxT = jax.lax.dynamic_slice_in_dim(context.mask_Bx1xTxT, start, queries, 2)
    if self.window is None:
      return rows_Bx1xQxT
    near_1x1xQxT = self._near(
        start + jnp.arange(queries)[:, None] - jnp.arange(steps), context)
    return near_1x1xQxT if rows_Bx1xQxT is None else rows_Bx1xQxT & near_1x1xQxT

  def _near(self, distance_QxT: jax.Array, context: Context) -> jax.Array:
    """Tells which keys the window allows, [1, 1, queries, time], by how far back they are."""
    assert self.window is not None
    if not context.is_causal:
      distance_QxT = jnp.abs(distance_QxT)
    near_QxT = distance_QxT < self.window
    if self.full_every is not None:
      near_QxT |= jnp.asarray(context.layer) % self.full_every == 0
    return near_QxT[None, None]
