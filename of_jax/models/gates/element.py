"""A gate a neuron of a head and token."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.gates import Gate
from of_jax.models.parameter import Linear, attention_std
from of_jax.models.probe import Context

READS = "maps"


class ElementGate(Gate):
  """o = sigmoid(x W_g) w v, element by element (Qiu et al. 2025, 2505.06708).

  After the weighted sum and before the output projection.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    assert model.head_dim is not None, "resolve the config first"
    self.linear = Linear(rngs, (model.width, model.heads, model.head_dim),
                         ("embed", "heads", "head_dim"), attention_std(model))

  def __call__(self, y_BxTxHxK: jax.Array, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    return y_BxTxHxK * jax.nn.sigmoid(
        context.linear("attn_gate", "attn_in", self.linear, x_BxTxD))
