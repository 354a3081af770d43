"""The Outlier Protected block of He et al. 2024 (2405.19279, Sec. 3 and App. B)."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.blocks import Block
from of_jax.models.norms import make_norm
from of_jax.models.probe import Context

NORMS = "none"
QK_NORM = "rms"
BETA = "inverse_sqrt_2_depth"
MLP = "optional"
NORM_OUTPUTS = "maps"


class OutlierProtected(Block):
  """h = x + beta MHA(x); y = h + beta MLP(alpha h) (He et al. 2024, 2405.19279, Sec. 3).

  No norm on the stream or its branches. beta = O(1 / sqrt(depth)) below 1 keeps signal
  propagation good without norms. Attention needs entropy regulation in their place: QK-norm
  (`model.qk_norm`, the default here) or a tanh cap (`model.attention_cap`). alpha
  (`model.mlp_input_scale`) brings the MLP's pre-activations to O(1) where the nonlinearity is not
  homogeneous: ReLU does not need it.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    assert model.mlp_input_scale is not None, "resolve the config first"
    self.alpha = model.mlp_input_scale

  @classmethod
  def plan(cls, model: ModelConfig) -> list[tuple[type[Block], int]]:
    if not model.first_attention_norm:
      return [(cls, model.depth)]
    rest = [(cls, model.depth - 1)] if model.depth > 1 else []
    return [(OutlierProtectedNormedInput, 1), *rest]

  def mlp_half(self, h_BxTxD: jax.Array, context: Context) -> jax.Array:
    return self.mlp_skip(h_BxTxD) + self.mlp_branch(h_BxTxD * self.alpha, context)


class OutlierProtectedNormedInput(OutlierProtected):
  """Block 0 of the released code: attention reads LayerNorm(x), for want of a scaled embedding.

  (github.com/bobby-he/simplified_transformers, norm_type none.)
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.attention_norm = make_norm("layer", rngs, model, before_attention=True)

  def attention_half(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    normed_BxTxD = self.attention_norm(x_BxTxD, context)
    return self.attention_skip(x_BxTxD) + self.attention_branch(normed_BxTxD, context)
