"""SSNorm: one gain for all neurons."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import Norm
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context

OVER_ANY_AXIS = True
GAIN_PER_NEURON = False
ROTATION = "any"


class SSNorm(Norm):
  """y = gamma x / rms(x), gamma one number (Outlier-Safe Pre-Training, 2506.19697); starts at 1.

  With a gain a neuron the norm could hold single neurons up; with one gain it cannot.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    self.scale = parameter(rngs, (), constant(1.0), "norm", ())

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    return (self.divide_by_rms(x) * self.scale[...]).astype(x.dtype)
