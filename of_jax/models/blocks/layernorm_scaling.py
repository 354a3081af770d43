"""LayerNorm Scaling block."""

import jax
import jax.numpy as jnp

from of_jax.models.blocks import Branch, Gain, NormedBlock
from of_jax.models.norms import Norm
from of_jax.models.probe import Context

ATTENTION_NORM = True
NORM_OUTPUTS = "maps"


class LayerNormScaling(NormedBlock):
  """y = x + f(Norm(x) / sqrt(l)), l the block's number from 1 (Sun et al. 2025, 2502.05795).

  Both halves of a block have the same l.
  """

  def half(self, branch: Branch, norm: Norm, skip: Gain, x_BxTxD: jax.Array, context: Context
           ) -> jax.Array:
    exact = jnp.promote_types(x_BxTxD.dtype, jnp.float32)
    scale = jax.lax.rsqrt(jnp.asarray(context.layer, exact)).astype(x_BxTxD.dtype)
    return skip(x_BxTxD) + branch(norm(x_BxTxD, context) * scale, context)
