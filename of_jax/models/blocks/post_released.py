"""Post-Norm block, as He et al. released it."""

import jax

from of_jax.models.blocks import Branch, Gain, NormedBlock
from of_jax.models.norms import Norm
from of_jax.models.probe import Context

ATTENTION_NORM = True
NORM_OUTPUTS = "stream"


class PostNormReleased(NormedBlock):
  """u = Norm1(x), h = u + MHA(u); v = Norm2(h), y = v + MLP(v) (code of He et al. 2024).

  The stream itself is normed at the start of a half, and the skip taken behind the norm. With
  `model.final_norm`, which closes the last half, it is `post` of a normed embedding.
  """

  def half(self, branch: Branch, norm: Norm, skip: Gain, x_BxTxD: jax.Array, context: Context
           ) -> jax.Array:
    normed_BxTxD = norm(x_BxTxD, context)
    return skip(normed_BxTxD) + branch(normed_BxTxD, context)
