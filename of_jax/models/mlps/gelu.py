"""GELU MLP."""

import jax

from of_jax.models.mlps import MLP


class GELUMLP(MLP):
  """gelu(x W_up) W_down, the tanh form of GPT-2 (Hendrycks & Gimpel 2016, 1606.08415)."""

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return jax.nn.gelu(x_BxTxF, approximate=True)
