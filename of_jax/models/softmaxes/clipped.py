"""Clipped softmax."""

import jax
import jax.numpy as jnp

from of_jax.config import ModelConfig
from of_jax.models.softmaxes import Softmax


class ClippedSoftmax(Softmax):
  """w = clip((zeta - gamma) softmax(z) + gamma, 0, 1) (Bondarenko et al. 2023, 2306.12929).

  A head can thus leave the stream alone with finite logits. A query's weights need not add up to
  1, and a clipped weight has no gradient. gamma = -alpha / T, alpha = 12 in their script for OPT.
  """

  def __init__(self, model: ModelConfig):
    super().__init__(model)
    assert model.softmax_gamma is not None, "resolve the config first"
    self.zeta, self.gamma = model.softmax_zeta, model.softmax_gamma

  def __call__(self, logits_BxHxTxS: jax.Array) -> jax.Array:
    stretched = (self.zeta - self.gamma) * jax.nn.softmax(logits_BxHxTxS, -1) + self.gamma
    return jnp.clip(stretched, 0, 1)
