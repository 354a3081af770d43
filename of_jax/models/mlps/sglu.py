"""SGLU MLP."""

import jax

from of_jax.models.mlps import GatedMLP

GATED = True
HAS_NONLINEARITY = False


class SGLUMLP(GatedMLP):
  """(x W_gate * x W_up) W_down, no activation (TransNormerLLM, 2307.14995)."""

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return x_BxTxF
