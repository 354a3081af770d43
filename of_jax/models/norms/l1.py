"""L1 norm: centred, the mean size in place of the standard deviation."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import Norm, at_least_float32
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context

OVER_ANY_AXIS = True
HAS_ROOT = False


class L1Norm(Norm):
  """y = gamma (x - mean(x)) / (mean |x - mean(x)| + eps) + beta (ShiftQuant, 2411.10948).

  Integer training has it for want of a root. Of a Gaussian, the mean size is sqrt(2 / pi) of the
  standard deviation: gamma starts there, at LayerNorm's scale, which is this project's choice.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    self.scale = parameter(rngs, (width,), constant(math.sqrt(2 / math.pi)), "norm", (axis,))
    self.bias = parameter(rngs, (width,), constant(0.0), "norm", (axis,))

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    y = at_least_float32(x)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y / (jnp.mean(jnp.abs(y), -1, keepdims=True) + self.eps)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)
