"""The MLP of a block: one class a file, chosen by `model.mlp`.

A file states the traits of its MLP, see of_jax.config.traits.MLP.
"""

import jax
from flax import nnx

from of_jax import variants
from of_jax.config import ModelConfig
from of_jax.models.norms import make_norm
from of_jax.models.parameter import Linear
from of_jax.models.probe import Context
from of_jax.models.sigma_reparam import SigmaReparamLinear


class MLP(nnx.Module):
  """Base of the MLPs: phi(x W_up) W_down, two linear maps around a nonlinearity.

  [batch, time, width] -> [batch, time, width] through `mlp_width` hidden units. The maps have
  biases with `model.linear_bias`. With `model.mlp_norm` a norm stands before phi (Lyle et al.
  2024, 2407.01800, Sec. 3).
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    assert model.mlp_width is not None, "resolve the config first"
    self.up = self.linear_in(rngs, model)
    kind, shape = _linear_kind(model), (model.mlp_width, model.width)
    self.down = kind(rngs, shape, ("mlp", "embed"), self.init_std(model, model.mlp_width),
                     bias=model.linear_bias)
    self.has_norm = model.mlp_norm != "none"
    if self.has_norm:
      self.norm = make_norm(model.mlp_norm, rngs, model, model.mlp_width, "mlp")

  def linear_in(self, rngs: nnx.Rngs, model: ModelConfig) -> Linear:
    """Makes a linear map from the width to the hidden units."""
    assert model.mlp_width is not None, "resolve the config first"
    kind, shape = _linear_kind(model), (model.width, model.mlp_width)
    return kind(rngs, shape, ("embed", "mlp"), self.init_std(model, model.width),
                bias=model.linear_bias)

  def init_std(self, model: ModelConfig, inputs: int) -> float:
    """Standard deviation of a kernel with `inputs` rows."""
    del inputs
    return model.init_std

  def activation(self, x_BxTxF: jax.Array) -> jax.Array:
    """Nonlinearity phi, entry by entry."""
    raise NotImplementedError

  def hidden(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    """Hidden units after the nonlinearity, [batch, time, mlp_width]."""
    return self.activate(context.linear("mlp_up", "mlp_in", self.up, x_BxTxD), context)

  def activate(self, x_BxTxF: jax.Array, context: Context) -> jax.Array:
    """Applies phi, behind its norm if it has one."""
    return self.activation(self.norm(x_BxTxF, context) if self.has_norm else x_BxTxF)

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    h_BxTxF = self.hidden(x_BxTxD, context)
    h_BxTxF = context.probe("mlp_hidden", h_BxTxF)
    return context.linear("mlp_down", "mlp_hidden", self.down, h_BxTxF)


class GatedMLP(MLP):
  """Base of the gated forms: (phi(x W_gate) * x W_up) W_down (Shazeer 2020, 2002.05202)."""

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    self.gate = self.linear_in(rngs, model)

  def hidden(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    gate_BxTxF = context.linear("mlp_gate", "mlp_in", self.gate, x_BxTxD)
    up_BxTxF = context.linear("mlp_up", "mlp_in", self.up, x_BxTxD)
    return self.activate(gate_BxTxF, context) * up_BxTxF


def make_mlp(rngs: nnx.Rngs, model: ModelConfig) -> MLP:
  """Makes the MLP that a config names."""
  return variants.load_class("models/mlps", model.mlp, MLP)(rngs, model)


def _linear_kind(model: ModelConfig) -> type[Linear]:
  return SigmaReparamLinear if model.sigma_reparam == "block" else Linear
