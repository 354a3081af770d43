"""Parallel block with a norm a branch."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.blocks import Gain, NormedBlock
from of_jax.models.probe import Context

ATTENTION_NORM = True
NORM_OUTPUTS = "maps"


class ParallelTwoNorms(NormedBlock):
  """y = x + MHA(Norm1(x)) + MLP(Norm2(x)) (GPT-NeoX, Black et al. 2022, 2204.06745, Sec. 2.1).

  One skip. The stream entering the MLP half (`resid_mid`) is the block's input.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.attention_skip = Gain(rngs, model, None)  # The one skip is mlp_skip.

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    context.probe("resid_mid", x_BxTxD)
    attention_BxTxD = self.attention_branch(self.attention_norm(x_BxTxD, context), context)
    mlp_BxTxD = self.mlp_branch(self.mlp_norm(x_BxTxD, context), context)
    return self.mlp_skip(x_BxTxD) + attention_BxTxD + mlp_BxTxD
