"""Dynamic Tanh: a bounded nonlinearity in place of a norm."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import Norm, at_least_float32
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context

OVER_ANY_AXIS = True
HAS_EPS = False


class DyT(Norm):
  """y = gamma tanh(alpha x) + beta, alpha one number (Zhu et al. 2025, 2503.10622).

  alpha starts at `model.dyt_alpha`, 0.5 as published for all but language models. For those the
  authors' code starts it higher in the norms that attention reads, `model.dyt_alpha_attention`,
  and lower the wider the model: 0.8 there and 0.2 elsewhere at width 4096, 0.2 and 0.05 at 8192.
  It also multiplies the embedding by a trained number that starts at sqrt(width);
  `model.embedding_scale` is such a number, fixed. There is no statistic, hence no eps.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    start = model.dyt_alpha_attention if before_attention else model.dyt_alpha
    assert start is not None, "resolve the config first"
    self.alpha = parameter(rngs, (), constant(start), "norm", ())
    self.scale = parameter(rngs, (width,), constant(1.0), "norm", (axis,))
    self.bias = parameter(rngs, (width,), constant(0.0), "norm", (axis,))

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    y = jnp.tanh(at_least_float32(x) * self.alpha[...])
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)
