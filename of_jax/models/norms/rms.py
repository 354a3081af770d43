"""RMSNorm: a gain a neuron."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import Norm
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context

OVER_ANY_AXIS = True
ROTATION = "any"


class RMSNorm(Norm):
  """y = gamma x / rms(x) (Zhang & Sennrich 2019, 1910.07467, eq. 4); gamma starts at 1."""

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    self.scale = parameter(rngs, (width,), constant(1.0), "norm", (axis,))

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    return (self.divide_by_rms(x) * self.scale[...]).astype(x.dtype)
