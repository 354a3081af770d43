"""Residual blocks: one class a file, chosen by `model.block`."""

import jax
from flax import nnx

from of_jax import variants
from of_jax.config import ModelConfig
from of_jax.models.attention import Attention
from of_jax.models.mlps import make_mlp
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context


class Gain(nnx.Module):
  """Multiplies a branch's output: by nothing, a fixed number, or a trained scalar or vector.

  A trained vector is LayerScale (Touvron et al. 2021, 2103.17239, eq. 4).
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


class Block(nnx.Module):
  """Base of the blocks: an attention branch and an MLP branch, each with a gain.

  A subclass writes `__call__`: where the norms stand, and what the stream does. The branches
  probe their own inputs and outputs; the block probes `resid_mid`, and the model `resid_pre`.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    self.attention = Attention(rngs, model)
    self.mlp = make_mlp(rngs, model)
    self.attention_gain = Gain(rngs, model, model.beta_attention)
    self.mlp_gain = Gain(rngs, model, model.beta_mlp)

  @classmethod
  def plan(cls, model: ModelConfig) -> list[tuple[type["Block"], int]]:
    """The stack from the bottom: (class, number of consecutive blocks), together `depth`."""
    return [(cls, model.depth)]

  def attention_branch(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    """gain x attention(x), with dropout."""
    context.probe("attn_in", x_BxTxD)
    y_BxTxD = context.dropout(self.attention_gain(self.attention(x_BxTxD, context)))
    context.probe("attn_out", y_BxTxD)
    return y_BxTxD

  def mlp_branch(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    """gain x MLP(x), with dropout."""
    context.probe("mlp_in", x_BxTxD)
    y_BxTxD = context.dropout(self.mlp_gain(self.mlp(x_BxTxD, context)))
    context.probe("mlp_out", y_BxTxD)
    return y_BxTxD

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    """The stream entering the block -> the stream leaving it."""
    raise NotImplementedError


def plan_stack(model: ModelConfig) -> list[tuple[type[Block], int]]:
  """What `Block.plan` of the block that a config names says."""
  return variants.load_class("models/blocks", model.block, Block).plan(model)
