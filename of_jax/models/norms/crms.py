"""CRMSNorm: RMSNorm of a vector whose last neuron is not stored."""

import jax
import jax.numpy as jnp

from of_jax.models.norms import Norm, at_least_float32, divide_by_root
from of_jax.models.probe import Context

# Only the residual stream has a neuron that is not stored.
OVER_ANY_AXIS = False
GAIN_PER_NEURON = False
ROTATION = "keeps_mean"


class CRMSNorm(Norm):
  """y = x / sqrt((sum_j x_j^2 + (sum_j x_j)^2) / (width + 1)) (Jiang et al. 2023, 2305.14858).

  x holds the first entries of a vector with one neuron more, whose mean is zero: the last entry
  is minus the sum of the others. y is the RMSNorm of that longer vector, again without its last
  entry, so `model.width` is one less than the width of the model that it stands for.
  No parameters, as published: a gain a neuron would break the zero mean, and the next linear map
  takes it up. See of_jax.models.conversions for the model with LayerNorm that it equals.
  """

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    y = at_least_float32(x)
    last = -jnp.sum(y, -1, keepdims=True)
    mean_square = (jnp.sum(jnp.square(y), -1, keepdims=True) + jnp.square(last)) / (
        x.shape[-1] + 1)
    return divide_by_root(y, mean_square, self.eps, self.eps_inside).astype(x.dtype)
