"""LayerNorm: centred, a gain and an offset a neuron."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.models.norms import Norm
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context


class LayerNorm(Norm):
  """y = gamma (x - mean(x)) / std(x) + beta (Ba et al. 2016, 1607.06450, eq. 4)."""

  def __init__(self, rngs: nnx.Rngs, width: int, axis: str, eps: float, eps_inside: bool):
    super().__init__(rngs, width, axis, eps, eps_inside)
    self.scale = parameter(rngs, (width,), constant(1.0), "norm", (axis,))
    self.bias = parameter(rngs, (width,), constant(0.0), "norm", (axis,))

  def __call__(self, x: jax.Array, context: Context | None = None) -> jax.Array:
    y = x.astype(jnp.float32)
    y = self.divide_by_rms(y - jnp.mean(y, -1, keepdims=True))
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)
