"""Mix-LN: Post-Norm below, Pre-Norm above."""

import math

from of_jax.config import ModelConfig
from of_jax.models.blocks import Block
from of_jax.models.blocks.post import PostNorm
from of_jax.models.blocks.pre import PreNorm

NORM_OUTPUTS = "stream"


class MixNorm(Block):
  """post in the first floor(alpha L) blocks, pre in the others (Li et al. 2024, 2412.13795).

  alpha = `model.mix_alpha`; the paper's is 0.25, with a norm before the unembedding
  (`model.final_norm`).
  """

  @classmethod
  def plan(cls, model: ModelConfig) -> list[tuple[type[Block], int]]:
    # The product of two decimal numbers may fall short of the whole number it stands for.
    post = math.floor(model.mix_alpha * model.depth + 1e-9)
    return [(block, count) for block, count in ((PostNorm, post), (PreNorm, model.depth - post))
            if count]
