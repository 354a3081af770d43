"""GELU MLP without the approximation."""

import jax

from of_jax.models.mlps import MLP


class ExactGELUMLP(MLP):
  """gelu(x W_up) W_down, gelu(z) = z Phi(z), Phi the normal distribution's (Hendrycks & Gimpel
  2016, 1606.08415).
  """

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return jax.nn.gelu(x_BxTxF, approximate=False)
