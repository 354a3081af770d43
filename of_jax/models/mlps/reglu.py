"""ReGLU MLP."""

import jax

from of_jax.models.mlps import GatedMLP

GATED = True


class ReGLUMLP(GatedMLP):
  """(relu(x W_gate) * x W_up) W_down (Shazeer 2020, 2002.05202, eq. 6)."""

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return jax.nn.relu(x_BxTxF)
