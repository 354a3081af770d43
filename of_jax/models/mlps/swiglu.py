"""SwiGLU MLP."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.mlps import MLP
from of_jax.models.parameter import Linear


class SwiGLUMLP(MLP):
  """(silu(x W_gate) * x W_up) W_down (Shazeer 2020, 2002.05202, eq. 6)."""

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.gate = Linear(rngs, self.up.kernel.shape, ("embed", "mlp"), model.init_std,
                       bias=model.linear_bias)

  def hidden(self, x_BxTxD: jax.Array) -> jax.Array:
    return jax.nn.silu(self.gate(x_BxTxD)) * self.up(x_BxTxD)
