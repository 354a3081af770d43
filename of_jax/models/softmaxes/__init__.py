"""Maps from a query's logits to weights: one class a file, chosen by `model.attention_softmax`."""

import jax
from flax import nnx

from of_jax import variants
from of_jax.config import ModelConfig


class Softmax(nnx.Module):
  """Base of the maps from logits to weights, over the last axis; -inf gets the weight 0.

  Attributes:
    is_plain: whether it is the softmax itself, which fused kernels compute.
  """

  is_plain = False

  def __init__(self, model: ModelConfig):
    del model

  def __call__(self, logits_BxHxTxS: jax.Array) -> jax.Array:
    """Maps float32 logits to float32 weights, a query's keys along the last axis."""
    raise NotImplementedError


def make_softmax(model: ModelConfig) -> Softmax:
  """Makes the map that a config names."""
  return variants.load_class("models/softmaxes", model.attention_softmax, Softmax)(model)
