"""No norm."""

import jax

from of_jax.models.norms import Norm
from of_jax.models.probe import Context

OVER_ANY_AXIS = True
HAS_EPS = False
HAS_ROOT = False
GAIN_PER_NEURON = False
ROTATION = "any"


class NoNorm(Norm):
  """y = x: the block without its norms (He et al. 2024, 2405.19279, Sec. 3)."""

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    return x
