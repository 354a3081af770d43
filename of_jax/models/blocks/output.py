"""Norm on the branches' outputs alone."""

import jax

from of_jax.models.blocks import Branch, Gain, NormedBlock
from of_jax.models.norms import Norm
from of_jax.models.probe import Context

MLP = "optional"
NORM_OUTPUTS = "gain"


class OutputNorm(NormedBlock):
  """h = x + Norm1(MHA(x)); y = h + Norm2(MLP(h)) (OLMo 2, 2501.00656; FOG, 2505.20524).

  Both papers add QK-norm (`model.qk_norm`), for nothing bounds what attention reads.
  """

  def half(self, branch: Branch, norm: Norm, skip: Gain, x_BxTxD: jax.Array, context: Context
           ) -> jax.Array:
    return skip(x_BxTxD) + branch(x_BxTxD, context, norm)
