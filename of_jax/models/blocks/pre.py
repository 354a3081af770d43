"""Pre-Norm block."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.blocks import Block
from of_jax.models.norms import make_norm
from of_jax.models.probe import Context


class PreNorm(Block):
  """h = x + MHA(Norm1(x)); y = h + MLP(Norm2(h)) (Xiong et al. 2020; He et al. 2024, App. B).

  With `model.beta` the branches are scaled: He et al.'s Pre-LN with down-scaled residuals.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.attention_norm = make_norm(model.norm, rngs, model, before_attention=True)
    self.mlp_norm = make_norm(model.norm, rngs, model)

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    h_BxTxD = x_BxTxD + self.attention_branch(self.attention_norm(x_BxTxD, context), context)
    context.probe("resid_mid", h_BxTxD)
    return h_BxTxD + self.mlp_branch(self.mlp_norm(h_BxTxD, context), context)
