"""Orthogonal projections at both ends of the stream."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.parameter import parameter


class EmbeddingProjection(nnx.Module):
  """x = E[token] P_in, logits = (x P_out) U, P orthogonal at init (OSP, 2506.19697).

  Square matrices, trained like hidden ones: outliers that the embedding's optimiser makes are
  spread over the neurons before the blocks see them. Both fold into the tables after training.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    shape, orthogonal = (model.width, model.width), jax.nn.initializers.orthogonal()
    self.entry = parameter(rngs, shape, orthogonal, "hidden", ("embed", "channel"))
    self.exit = parameter(rngs, shape, orthogonal, "hidden", ("embed", "channel"))

  def enter(self, x_BxTxD: jax.Array) -> jax.Array:
    """Projects the embedding."""
    return jnp.tensordot(x_BxTxD, self.entry[...].astype(x_BxTxD.dtype), 1)

  def leave(self, x_BxTxD: jax.Array) -> jax.Array:
    """Projects the stream for the unembedding to read."""
    return jnp.tensordot(x_BxTxD, self.exit[...].astype(x_BxTxD.dtype), 1)
