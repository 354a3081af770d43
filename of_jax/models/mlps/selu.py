"""SELU MLP."""

import math

import jax

from of_jax.config import ModelConfig
from of_jax.models.mlps import MLP


class SELUMLP(MLP):
  """selu(x W_up) W_down, kernels of variance 1 / inputs (Klambauer et al. 2017, 1706.02515).

  selu(z) = 1.0507 z above 0 and 1.0507 x 1.6733 (e^z - 1) below: inputs of mean 0 and variance 1
  stay so. `model.init_std` does not reach these kernels. Dropout is the block's, not theirs.
  """

  def init_std(self, model: ModelConfig, inputs: int) -> float:
    return 1 / math.sqrt(inputs)

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return jax.nn.selu(x_BxTxF)
