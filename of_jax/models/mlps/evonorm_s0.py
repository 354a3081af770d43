"""EvoNorm-S0 MLP."""

import jax
import jax.numpy as jnp

from of_jax.models.evonorm import EPS, EvoNormMLP
from of_jax.models.probe import Context

HAS_NONLINEARITY = False
_GROUPS = 32


class EvoNormS0MLP(EvoNormMLP):
  """EvoNorm(x W_up) W_down, z sigmoid(v z) / std of z's group of units (Liu et al. 2004.02967).

  A group is a share of one token's hidden units: 32 groups, or the most below that divide their
  number, as in the authors' code, whose pixels are this token alone.
  """

  def normed(self, x_BxTxF: jax.Array, context: Context) -> jax.Array:
    units = x_BxTxF.shape[-1]
    groups = next(n for n in range(_GROUPS, 0, -1) if units % n == 0)
    grouped = x_BxTxF.reshape(*x_BxTxF.shape[:-1], groups, units // groups)
    inverse = jax.lax.rsqrt(jnp.var(grouped, -1, keepdims=True) + EPS)
    inverse_BxTxF = jnp.broadcast_to(inverse, grouped.shape).reshape(x_BxTxF.shape)
    return x_BxTxF * jax.nn.sigmoid(self.slope[...] * x_BxTxF) * inverse_BxTxF
