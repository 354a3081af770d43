"""GLU MLP."""

import jax

from of_jax.models.mlps import GatedMLP

GATED = True


class GLUMLP(GatedMLP):
  """(sigmoid(x W_gate) * x W_up) W_down (Dauphin et al. 2016, 1612.08083; Shazeer 2020)."""

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(x_BxTxF)
