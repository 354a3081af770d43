"""Parallel block."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.blocks import Block, Gain
from of_jax.models.norms import make_norm
from of_jax.models.probe import Context

NORMS = "optional"
NORM_OUTPUTS = "maps"


class Parallel(Block):
  """y = x + MHA(n) + MLP(n), n = Norm(x) (GPT-J, Wang & Komatsuzaki 2021; code of He et al. 2024).

  One norm, one skip. The stream entering the MLP half (`resid_mid`) is the block's input.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.norm = make_norm(model.norm, rngs, model)
    self.attention_skip = Gain(rngs, model, None)  # The one skip is mlp_skip.

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    x_BxTxD = context.probe("resid_mid", x_BxTxD)
    normed_BxTxD = self.norm(x_BxTxD, context)
    return (self.mlp_skip(x_BxTxD) + self.attention_branch(normed_BxTxD, context)
            + self.mlp_branch(normed_BxTxD, context))
