"""RMSNorm: a gain a neuron."""

import jax
from flax import nnx

from of_jax.models.norms import Norm
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context


class RMSNorm(Norm):
  """y = gamma x / rms(x) (Zhang & Sennrich 2019, 1910.07467, eq. 4); gamma starts at 1."""

  def __init__(self, rngs: nnx.Rngs, width: int, axis: str, eps: float, eps_inside: bool):
    super().__init__(rngs, width, axis, eps, eps_inside)
    self.scale = parameter(rngs, (width,), constant(1.0), "norm", (axis,))

  def __call__(self, x: jax.Array, context: Context | None = None) -> jax.Array:
    return (self.divide_by_rms(x) * self.scale[...]).astype(x.dtype)
