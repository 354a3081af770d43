"""Pre-Norm block with gated norms."""

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.blocks.pre import PreNorm
from of_jax.models.norms import Norm, make_norm
from of_jax.models.parameter import Linear, constant, parameter
from of_jax.models.probe import Context

ATTENTION_NORM = True


class GatedNormBlock(PreNorm):
  """pre, each norm n sigmoid(W_up swish(W_down n)), n = Norm(lambda_1 x) ("A Unified View of
  Attention and Residual Sinks", 2601.22966).

  Outliers in the stream serve the norm to rescale the rest; a gate and a gain before the norm
  (PreAffine) do this without them. `model.norm_gate_rank` is the width between W_down and W_up.
  """

  def make_norm(self, rngs: nnx.Rngs, model: ModelConfig, before_attention: bool = False) -> Norm:
    return GatedNorm(rngs, model, model.width, "channel", before_attention)


class GatedNorm(Norm):
  """n sigmoid(W_up swish(W_down n)), n = Norm(lambda_1 x), the norm that the config names.

  lambda_1 starts at 1, and Norm keeps whatever gain it has itself. The gate's matrices are drawn
  like all others, so that a gate is near 1/2 at first.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    self.affine = parameter(rngs, (width,), constant(1.0), "norm", (axis,))
    self.norm = make_norm(model.norm, rngs, model, width, axis, before_attention)
    rank, std = model.norm_gate_rank, model.init_std
    self.down = Linear(rngs, (width, rank), ("embed", "rank"), std)
    self.up = Linear(rngs, (rank, width), ("rank", "embed"), std)

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    normed = self.norm(x * self.affine[...].astype(x.dtype), context)
    return normed * jax.nn.sigmoid(self.up(jax.nn.silu(self.down(normed))))
