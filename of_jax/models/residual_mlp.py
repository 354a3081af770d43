"""Residual MLP on images: whitened pixels in, one output a class and its probes' statistics out.

An image is one token: activations are [batch, 1, width], so that telemetry, loss and sharding
are those of the transformer.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import Config, ModelConfig
from of_jax.models import partition
from of_jax.models.blocks import Gain
from of_jax.models.mlps import make_mlp
from of_jax.models.norms import make_norm
from of_jax.models.numerics import Numerics
from of_jax.models.parameter import Linear
from of_jax.models.probe import Context, Intervene, Observer, Penalise, Statistics
from of_jax.models.stack import StackedNetwork, stacked


class ResidualLayer(nnx.Module):
  """Pre-Norm layer without attention: y = x + gain MLP(Norm(x)); no gain by default.

  It probes `mlp_in`, `mlp_hidden` and `mlp_out`; the network probes `resid_pre` and `final`.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    self.norm = make_norm(model.norm, rngs, model)
    self.mlp = make_mlp(rngs, model)
    self.mlp_gain = Gain(rngs, model, model.beta_mlp)

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    h_BxTxD = context.probe("mlp_in", self.norm(x_BxTxD, context))
    y_BxTxD = context.dropout(self.mlp_gain(self.mlp(h_BxTxD, context)))
    return x_BxTxD + context.probe("mlp_out", y_BxTxD)


class ResidualMLP(StackedNetwork):
  """MLP of He et al. 2024 (2405.19279, App. D, CIFAR-10): f(x) = W_out h_L(W_in x) / sqrt(width).

  W_out starts at zero, so that every output does. The paper does not give the hidden width of a
  layer: `model.mlp_width` = width makes its six layers of width 1024 on CIFAR-10 the 15.7 million
  parameters (3072 x 1024 + 6 x 2 x 1024^2 + 1024 x 10) that it rounds to 15.
  """

  def __init__(self, model: ModelConfig, input_size: int, classes: int, rngs: nnx.Rngs):
    """Args:
      model: resolved.
      input_size: entries of one whitened image.
      classes: outputs.
      rngs: the stream `params` draws the parameters.
    """
    self.model = model
    self.input = Linear(rngs, (input_size, model.width), ("pixel", "embed"), model.init_std,
                        role="embedding")
    self.stacks = nnx.Dict({"0": stacked(ResidualLayer, model.depth, model, rngs)})
    if model.final_norm:
      self.final_norm = make_norm(model.norm, rngs, model)
    self.unembedding = Linear(rngs, (model.width, classes), ("embed", "class"), std=0.0,
                              role="unembedding")

  @classmethod
  def of_config(cls, config: Config, rngs: nnx.Rngs) -> "ResidualMLP":
    assert config.data.input_size is not None and config.data.classes is not None
    return cls(config.model, config.data.input_size, config.data.classes, rngs)

  def unembedding_table(self) -> jax.Array:
    """Returns [width, classes], with the output's 1 / sqrt(width) in it."""
    return self.unembedding.kernel[...] / math.sqrt(self.model.width)

  def stream(self, inputs: jax.Array, documents_BxT: jax.Array | None = None, *,
             dropout_key: jax.Array | None = None, observe: Observer | None = None,
             intervene: Intervene | None = None, penalise: Penalise | None = None,
             training: bool = False, numerics: Numerics | None = None
             ) -> tuple[jax.Array, dict[str, Statistics]]:
    """See StackedNetwork.stream; images belong to no document."""
    assert documents_BxT is None
    # No image is the first of a sequence: what leaves out position 0 leaves out nothing.
    positions_BxT = jnp.full(inputs.shape[:2], -1)
    first_BxT = jnp.zeros(inputs.shape[:2], bool)

    def context(key: jax.Array | None, layer: jax.Array | int) -> Context:
      return Context(positions_BxT, None, layer, self.model.dropout, key, observe, intervene,
                     training, first_BxT, None, numerics)

    x_BxTxD = self.input(inputs.astype(self.model.compute_dtype))
    return self.run_stacks(partition.constrain_batch(x_BxTxD), context, dropout_key, penalise)
