"""No gate."""

import jax

from of_jax.models.gates import Gate
from of_jax.models.probe import Context

READS = "maps"


class NoGate(Gate):
  """o = w v (Vaswani et al. 2017, eq. 1)."""

  def __call__(self, y_BxTxHxK: jax.Array, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    return y_BxTxHxK
