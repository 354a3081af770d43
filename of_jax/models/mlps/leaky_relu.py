"""Leaky ReLU MLP."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.mlps import MLP


class LeakyReLUMLP(MLP):
  """leaky(x W_up) W_down, leaky(z) = max(z, 0) + slope min(z, 0) (Maas et al. 2013).

  He et al. 2024 (Sec. 4) use the slope to make the network more linear.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.slope = model.leaky_relu_slope

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x_BxTxF, self.slope)
