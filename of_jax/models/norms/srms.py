"""SRMSNorm: no parameters."""

import jax

from of_jax.models.norms import Norm
from of_jax.models.probe import Context

OVER_ANY_AXIS = True
GAIN_PER_NEURON = False
ROTATION = "any"


class SRMSNorm(Norm):
  """y = x / rms(x) (TransNormerLLM, 2307.14995; He et al. 2024, App. B: c = 0, gamma = 1)."""

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    return self.divide_by_rms(x).astype(x.dtype)
