"""Peri-LN block."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.blocks.pre import PreNorm
from of_jax.models.norms import Norm
from of_jax.models.probe import Context

ATTENTION_NORM = True
NORM_OUTPUTS = "gain"


class PeriNorm(PreNorm):
  """y = x + Norm_out(f(Norm_in(x))), f = MHA, then f = MLP (Kim et al. 2025, 2502.02732).

  The paper's norm of the embedding is `model.embedding_norm`. A gain acts behind Norm_out.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.attention_output_norm = self.make_norm(rngs, model)
    self.mlp_output_norm = self.make_norm(rngs, model)

  def attention_branch(self, x_BxTxD: jax.Array, context: Context,
                       output_norm: Norm | None = None) -> jax.Array:
    return super().attention_branch(x_BxTxD, context, output_norm or self.attention_output_norm)

  def mlp_branch(self, x_BxTxD: jax.Array, context: Context,
                 output_norm: Norm | None = None) -> jax.Array:
    return super().mlp_branch(x_BxTxD, context, output_norm or self.mlp_output_norm)
