"""SiLU MLP."""

import jax

from of_jax.models.mlps import MLP


class SiLUMLP(MLP):
  """silu(x W_up) W_down, silu(z) = z sigmoid(z) (Elfwing et al. 2017, 1702.03118)."""

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return jax.nn.silu(x_BxTxF)
