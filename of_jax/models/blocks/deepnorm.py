"""DeepNorm block."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.blocks import Branch, Gain, NormedBlock
from of_jax.models.norms import Norm
from of_jax.models.parameter import Linear
from of_jax.models.probe import Context

NORM_OUTPUTS = "stream"


class DeepNorm(NormedBlock):
  """y = Norm(alpha x + f(x)), alpha = (2L)^(1/4), f = MHA, then MLP (Wang et al. 2022, 2203.00555).

  At init the kernels of values, attention output and MLP are (8L)^(-1/4) times what they would be
  (their decoder-only case).
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.alpha = (2 * model.depth) ** 0.25
    of_mlp = [part for part in vars(self.mlp).values() if isinstance(part, Linear)]
    for linear in (self.attention.value, self.attention.out, *of_mlp):
      linear.rescale_init((8 * model.depth) ** -0.25)

  def half(self, branch: Branch, norm: Norm, skip: Gain, x_BxTxD: jax.Array, context: Context
           ) -> jax.Array:
    y_BxTxD = self.alpha * skip(x_BxTxD) + branch(x_BxTxD, context)
    return self.normed_sum(norm, y_BxTxD, context)
