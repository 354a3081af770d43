"""Post-Norm block, as the papers write it."""

import jax

from of_jax.models.blocks import Branch, Gain, NormedBlock
from of_jax.models.norms import Norm
from of_jax.models.probe import Context

MLP = "optional"
NORM_OUTPUTS = "stream"


class PostNorm(NormedBlock):
  """h = Norm1(x + MHA(x)); y = Norm2(h + MLP(h)) (Vaswani et al. 2017; He et al. 2024, App. B).

  The unembedding reads a normed stream without `model.final_norm`.
  """

  def half(self, branch: Branch, norm: Norm, skip: Gain, x_BxTxD: jax.Array, context: Context
           ) -> jax.Array:
    return self.normed_sum(norm, skip(x_BxTxD) + branch(x_BxTxD, context), context)
