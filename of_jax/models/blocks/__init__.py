"""Residual blocks: one class a file, chosen by `model.block`.

A file states the traits of its block, see of_jax.config.traits.Block.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax import variants
from of_jax.config import ModelConfig
from of_jax.models.attention import Attention
from of_jax.models.linear_attention import LinearAttention
from of_jax.models.mlps import make_mlp
from of_jax.models.norms import Norm, make_norm
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context


class Gain(nnx.Module):
  """y = beta f(x), a number a branch or a channel: LayerScale (Touvron et al. 2021, 2103.17239).

  beta is absent, fixed, or trained: one a branch, or with `model.beta_per_channel` one a channel,
  which is LayerScale (its eq. 4).
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, init: float | None):
    self.fixed = None if model.beta_trainable else init
    self.has_value = init is not None and model.beta_trainable
    if self.has_value:
      assert init is not None
      shape, axes = ((model.width,), ("channel",)) if model.beta_per_channel else ((), ())
      self.value = parameter(rngs, shape, constant(init), "gain", axes)

  def __call__(self, x: jax.Array) -> jax.Array:
    if self.has_value:
      return x * self.value[...].astype(x.dtype)
    return x if self.fixed is None else x * self.fixed


class Branch(Protocol):
  """Attention or the MLP, with the output norm (if any), the gain and the dropout behind it."""

  def __call__(self, x_BxTxD: jax.Array, context: Context, output_norm: Norm | None = None
               ) -> jax.Array:
    ...


class Block(nnx.Module):
  """Base of the blocks: h = x + MHA(x); y = h + MLP(h), a gain a branch and a skip, and no norm.

  A subclass says where norms stand and what the stream does: NormedBlock for both halves in one
  line, or `attention_half` and `mlp_half` apart. The branches probe their own inputs and outputs;
  the block probes `resid_mid`, and the model `resid_pre`. With `model.mlp=none` the second half,
  its norm, gain and skip are left out, and its sites hold NaN, which is written as null.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    attention = LinearAttention if model.attention == "linear" else Attention
    self.attention = attention(rngs, model)
    self.has_mlp = model.mlp != "none"
    if self.has_mlp:
      self.mlp = make_mlp(rngs, model)
    self.attention_gain = Gain(rngs, model, model.beta_attention)
    if self.has_mlp:
      self.mlp_gain = Gain(rngs, model, model.beta_mlp)
    self.attention_skip = Gain(rngs, model, model.skip_gain)
    if self.has_mlp:
      self.mlp_skip = Gain(rngs, model, model.skip_gain)
    self.absent = {} if self.has_mlp else {
        "mlp_in": model.width, "mlp_hidden": model.mlp_width or 1, "mlp_out": model.width}

  @classmethod
  def plan(cls, model: ModelConfig) -> list[tuple[type["Block"], int]]:
    """Plans the stack from the bottom: (class, number of consecutive blocks), together `depth`."""
    return [(cls, model.depth)]

  def attention_branch(self, x_BxTxD: jax.Array, context: Context,
                       output_norm: Norm | None = None) -> jax.Array:
    """Attention branch: gain x output_norm(attention(x)), with dropout."""
    x_BxTxD = context.probe("attn_in", x_BxTxD)
    y_BxTxD = self.attention(x_BxTxD, context)
    y_BxTxD = _finish(y_BxTxD, output_norm, self.attention_gain, context)
    return context.probe("attn_out", y_BxTxD)

  def mlp_branch(self, x_BxTxD: jax.Array, context: Context,
                 output_norm: Norm | None = None) -> jax.Array:
    """MLP branch: gain x output_norm(MLP(x)), with dropout."""
    x_BxTxD = context.probe("mlp_in", x_BxTxD)
    y_BxTxD = self.mlp(x_BxTxD, context)
    y_BxTxD = _finish(y_BxTxD, output_norm, self.mlp_gain, context)
    return context.probe("mlp_out", y_BxTxD)

  def attention_half(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    """Maps the stream entering the block to the stream entering its MLP half."""
    return self.attention_skip(x_BxTxD) + self.attention_branch(x_BxTxD, context)

  def mlp_half(self, h_BxTxD: jax.Array, context: Context) -> jax.Array:
    """Maps the stream entering the MLP half to the stream leaving the block."""
    return self.mlp_skip(h_BxTxD) + self.mlp_branch(h_BxTxD, context)

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    """Maps the stream entering the block to the stream leaving it."""
    h_BxTxD = context.probe("resid_mid", self.attention_half(x_BxTxD, context))
    for site, neurons in self.absent.items():
      context.observe_at(site, jnp.full((*h_BxTxD.shape[:2], neurons), jnp.nan, h_BxTxD.dtype))
    return self.mlp_half(h_BxTxD, context) if self.has_mlp else h_BxTxD


class NormedBlock(Block):
  """Base of the blocks whose halves have a norm each, in the same place: a subclass says where."""

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.attention_norm = self.make_norm(rngs, model, before_attention=True)
    if self.has_mlp:
      self.mlp_norm = self.make_norm(rngs, model)

  def make_norm(self, rngs: nnx.Rngs, model: ModelConfig, before_attention: bool = False) -> Norm:
    """Makes the norm of one half."""
    return make_norm(model.norm, rngs, model, before_attention=before_attention)

  def half(self, branch: Branch, norm: Norm, skip: Gain, x_BxTxD: jax.Array, context: Context
           ) -> jax.Array:
    """Maps the stream entering a half to the stream leaving it."""
    raise NotImplementedError

  def normed_sum(self, norm: Norm, y_BxTxD: jax.Array, context: Context) -> jax.Array:
    """Norms the sum of skip and branch, of the half whose norm it is."""
    site = "attn_sum" if norm is self.attention_norm else "mlp_sum"
    return norm(context.at(site, y_BxTxD), context)

  def attention_half(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    return self.half(self.attention_branch, self.attention_norm, self.attention_skip, x_BxTxD,
                     context)

  def mlp_half(self, h_BxTxD: jax.Array, context: Context) -> jax.Array:
    return self.half(self.mlp_branch, self.mlp_norm, self.mlp_skip, h_BxTxD, context)


def plan_stack(model: ModelConfig) -> list[tuple[type[Block], int]]:
  """Plans the stack of the block that a config names, see `Block.plan`."""
  return variants.load_class("models/blocks", model.block, Block).plan(model)


def _finish(y_BxTxD: jax.Array, output_norm: Norm | None, gain: Gain, context: Context
            ) -> jax.Array:
  normed_BxTxD = y_BxTxD if output_norm is None else output_norm(y_BxTxD, context)
  return context.dropout(gain(normed_BxTxD))
