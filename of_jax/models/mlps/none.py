"""No MLP."""

import jax

from of_jax.models.mlps import MLP
from of_jax.models.probe import Context

HAS_NONLINEARITY = False


class NoMLP(MLP):
  """y = h: the block without its MLP, the norm before it included (2410.13732).

  A block makes none of it, so that there are no parameters; of its sites every metric is null.
  """

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    raise AssertionError("a block without an MLP calls none")
