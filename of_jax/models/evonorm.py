"""EvoNorm: norm and nonlinearity of the hidden units in one (Liu et al. 2020, 2004.02967)."""

from typing import Any

import jax
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.mlps import MLP
from of_jax.models.norms import at_least_float32
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context

EPS = 1e-5


class EvoNormMLP(MLP):
  """Base of both forms: (gamma f(x W_up) + beta) W_down, f with a trained v for each unit.

  gamma and v start at 1, beta at 0, eps is 1e-5, as in the authors' code; `model.norm_eps` is for
  other norms.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.scale, self.bias, self.slope = (
        self.of_units(rngs, model, value, "norm") for value in (1.0, 0.0, 1.0))

  def of_units(self, rngs: nnx.Rngs, model: ModelConfig, value: float, role: str) -> Any:
    """Makes a parameter with a value for each hidden unit."""
    assert model.mlp_width is not None, "resolve the config first"
    return parameter(rngs, (model.mlp_width,), constant(value), role, ("mlp",))

  def normed(self, x_BxTxF: jax.Array, context: Context) -> jax.Array:
    """f, in float32."""
    raise NotImplementedError

  def activate(self, x_BxTxF: jax.Array, context: Context) -> jax.Array:
    y_BxTxF = self.normed(at_least_float32(x_BxTxF), context)
    z_BxTxF: jax.Array = y_BxTxF * self.scale[...] + self.bias[...]
    return z_BxTxF.astype(x_BxTxF.dtype)
