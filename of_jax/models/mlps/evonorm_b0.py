"""EvoNorm-B0 MLP."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.evonorm import EPS, EvoNormMLP
from of_jax.models.probe import Context
from of_jax.models.running import renew

HAS_NONLINEARITY = False
CAUSAL = False
_DECAY = 0.9


class EvoNormB0MLP(EvoNormMLP):
  """EvoNorm(x W_up) W_down, z / max(std of the batch, v z + std of the row) (2004.02967).

  Of each hidden unit, over all tokens of the batch and over those of a row. Both see what comes
  later in a text; the row's does so in evaluation too, where only the batch's is a running one, so
  the loss on tokens is not that of a language model. The running variance starts at 1, its decay
  is 0.9; micro-batches have each their own and are averaged in it.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.running_variance = self.of_units(rngs, model, 1.0, "running")

  def normed(self, x_BxTxF: jax.Array, context: Context) -> jax.Array:
    row_Bx1xF = jnp.sqrt(jnp.var(x_BxTxF, 1, keepdims=True) + EPS)
    running = self.running_variance[...]
    variance_F = jnp.var(x_BxTxF, (0, 1)) if context.training else running
    y_BxTxF = x_BxTxF / jnp.maximum(
        jnp.sqrt(variance_F + EPS), self.slope[...] * x_BxTxF + row_Bx1xF)
    if not context.training:
      return y_BxTxF
    return renew(y_BxTxF, {"variance": running},
                 {"variance": _DECAY * running + (1 - _DECAY) * variance_F})
