"""ReLU MLP."""

import jax

from of_jax.models.mlps import MLP


class ReLUMLP(MLP):
  """relu(x W_up) W_down (Vaswani et al. 2017, eq. 2, without biases)."""

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    return jax.nn.relu(x_BxTxF)
