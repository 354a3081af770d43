"""The MLP of a block: one class a file, chosen by `model.mlp`."""

import jax
from flax import nnx

from of_jax import variants
from of_jax.config import ModelConfig
from of_jax.models.parameter import Linear
from of_jax.models.probe import Context


class MLP(nnx.Module):
  """Base of the MLPs: two linear maps around a nonlinearity.

  [batch, time, width] -> [batch, time, width] through `mlp_width` hidden units. The maps have
  biases with `model.linear_bias`.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    assert model.mlp_width is not None, "resolve the config first"
    self.up = Linear(rngs, (model.width, model.mlp_width), ("embed", "mlp"), model.init_std,
                     bias=model.linear_bias)
    self.down = Linear(rngs, (model.mlp_width, model.width), ("mlp", "embed"), model.init_std,
                       bias=model.linear_bias)

  def hidden(self, x_BxTxD: jax.Array) -> jax.Array:
    """The hidden units after the nonlinearity, [batch, time, mlp_width]."""
    raise NotImplementedError

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    h_BxTxF = self.hidden(x_BxTxD)
    context.probe("mlp_hidden", h_BxTxF)
    return self.down(h_BxTxF)


def make_mlp(rngs: nnx.Rngs, model: ModelConfig) -> MLP:
  """The MLP that a config names."""
  return variants.load_class("models/mlps", model.mlp, MLP)(rngs, model)
