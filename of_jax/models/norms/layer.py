"""LayerNorm: centred, a gain and an offset a neuron."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import Norm, at_least_float32
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context

OVER_ANY_AXIS = True
ROTATION = "keeps_mean"


class LayerNorm(Norm):
  """y = gamma (x - mean(x)) / std(x) + beta (Ba et al. 2016, 1607.06450, eq. 4)."""

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    self.eps_inside = model.norm_eps_placement != "outside"
    self.scale = parameter(rngs, (width,), constant(1.0), "norm", (axis,))
    self.bias = parameter(rngs, (width,), constant(0.0), "norm", (axis,))

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    y = at_least_float32(x)
    y = self.divide_by_rms(y - jnp.mean(y, -1, keepdims=True))
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)
