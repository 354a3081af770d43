"""Gates on the heads' outputs: one class a file, chosen by `model.attention_gate`.

A file states how its gate reads the stream, see of_jax.config.traits.Gate.
"""

import jax
from flax import nnx

from of_jax import variants
from of_jax.config import ModelConfig
from of_jax.models.probe import Context


class Gate(nnx.Module):
  """Base of the gates: maps the heads' outputs and the input of attention to gated outputs."""

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    del rngs, model

  def __call__(self, y_BxTxHxK: jax.Array, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    raise NotImplementedError


def make_gate(rngs: nnx.Rngs, model: ModelConfig) -> Gate:
  """Makes the gate that a config names."""
  return variants.load_class("models/gates", model.attention_gate, Gate)(rngs, model)
