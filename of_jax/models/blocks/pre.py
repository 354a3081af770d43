"""Pre-Norm block."""

import jax

from of_jax.models.blocks import Branch, Gain, NormedBlock
from of_jax.models.norms import Norm
from of_jax.models.probe import Context

NORMS = "optional"
ATTENTION_NORM = True
MLP = "optional"
NORM_OUTPUTS = "maps"


class PreNorm(NormedBlock):
  """h = x + MHA(Norm1(x)); y = h + MLP(Norm2(h)) (Xiong et al. 2020; He et al. 2024, App. B).

  With `model.beta` the branches are scaled: He et al.'s Pre-LN with down-scaled residuals.
  """

  def half(self, branch: Branch, norm: Norm, skip: Gain, x_BxTxD: jax.Array, context: Context
           ) -> jax.Array:
    return skip(x_BxTxD) + branch(norm(x_BxTxD, context), context)
