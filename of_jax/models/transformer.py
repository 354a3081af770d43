"""Decoder-only transformer: tokens in, logits and the statistics of its probes out."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import Config, ModelConfig
from of_jax.models import partition
from of_jax.models.blocks import plan_stack
from of_jax.models.embedding_projection import EmbeddingProjection
from of_jax.models.norms import make_norm
from of_jax.models.numerics import Numerics
from of_jax.models.parameter import Linear, normal, parameter
from of_jax.models.probe import Context, Intervene, Observer, Penalise, Statistics
from of_jax.models.stack import StackedNetwork, stacked


class Embedding(nnx.Module):
  """Embedding, scale x (token table + position table): [batch, time] -> [batch, time, width].

  The scale acts on the sum. The paper's 50 brings its mean square to 1 from token tables of
  standard deviation 0.02 (He et al. 2024, App. D), or to 1.25 with the position table on top.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, vocab_size: int, sequence_length: int):
    self.scale = model.embedding_scale
    self.dtype = jnp.dtype(model.compute_dtype)
    self.token = parameter(rngs, (vocab_size, model.width), normal(model.init_std),
                           "embedding", ("vocab", "embed"))
    self.has_position = model.positions == "learned"
    if self.has_position:
      assert model.position_init_std is not None, "resolve the config first"
      self.position = parameter(rngs, (sequence_length, model.width),
                                normal(model.position_init_std), "embedding",
                                ("position", "embed"))

  def __call__(self, tokens_BxT: jax.Array, positions_BxT: jax.Array) -> jax.Array:
    # A lookup in a split table would gather it row by row; whole, it is one gather.
    x_BxTxD = jnp.take(partition.constrain_replicated(self.token[...]), tokens_BxT, axis=0)
    if self.has_position:
      x_BxTxD += jnp.take(partition.constrain_replicated(self.position[...]), positions_BxT, axis=0)
    return partition.constrain_batch((x_BxTxD * self.scale).astype(self.dtype))


class Transformer(StackedNetwork):
  """Transformer: embedding, stack of blocks, optional norm, and an unembedding without bias.

  The embedding may be projected and then normed, what the unembedding reads normed and then
  projected.
  """

  def __init__(self, model: ModelConfig, vocab_size: int, sequence_length: int, rngs: nnx.Rngs):
    """Args:
      model: resolved.
      vocab_size: rows of the embedding.
      sequence_length: rows of the position table, where there is one.
      rngs: the stream `params` draws the parameters.
    """
    self.model = model
    self.embedding = Embedding(rngs, model, vocab_size, sequence_length)
    self.stacks = nnx.Dict({
        str(i): stacked(block, count, model, rngs)
        for i, (block, count) in enumerate(plan_stack(model))})
    if model.embedding_norm:
      self.embedding_norm = make_norm(model.norm, rngs, model)
    if model.embedding_projection:
      self.embedding_projection = EmbeddingProjection(rngs, model)
    if model.final_norm:
      assert model.final_norm_kind is not None, "resolve the config first"
      self.final_norm = make_norm(model.final_norm_kind, rngs, model)
    if not model.tied_embeddings:
      self.unembedding = Linear(rngs, (model.width, vocab_size), ("embed", "vocab"),
                                model.init_std, role="unembedding")

  @classmethod
  def of_config(cls, config: Config, rngs: nnx.Rngs) -> "Transformer":
    return cls(config.model, config.data.vocab_size, config.train.sequence_length, rngs)

  def unembedding_table(self) -> jax.Array:
    """Returns [width, vocabulary]: logits are the stream times this."""
    if self.model.tied_embeddings:
      return self.embedding.token[...].T
    return self.unembedding.kernel[...]

  def stream(self, inputs: jax.Array, documents_BxT: jax.Array | None = None, *,
             dropout_key: jax.Array | None = None, observe: Observer | None = None,
             intervene: Intervene | None = None, penalise: Penalise | None = None,
             training: bool = False, numerics: Numerics | None = None
             ) -> tuple[jax.Array, dict[str, Statistics]]:
    """See StackedNetwork.stream."""
    positions_BxT, mask_Bx1xTxT = _positions_and_mask(inputs, documents_BxT)
    first_BxT = None if documents_BxT is None else positions_BxT == 0

    def context(key: jax.Array | None, layer: jax.Array | int) -> Context:
      return Context(positions_BxT, mask_Bx1xTxT, layer, self.model.dropout, key, observe,
                     intervene, training, first_BxT, documents_BxT, numerics)

    return self.run_stacks(self.embedding(inputs, positions_BxT), context, dropout_key, penalise)

  def enter(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    if self.model.embedding_projection:
      x_BxTxD = self.embedding_projection.enter(x_BxTxD)
    return self.embedding_norm(x_BxTxD, context) if self.model.embedding_norm else x_BxTxD

  def leave(self, x_BxTxD: jax.Array) -> jax.Array:
    projected = self.model.embedding_projection
    return self.embedding_projection.leave(x_BxTxD) if projected else x_BxTxD


def _positions_and_mask(tokens_BxT: jax.Array, documents_BxT: jax.Array | None
                        ) -> tuple[jax.Array, jax.Array | None]:
  index_BxT = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
  if documents_BxT is None:
    return index_BxT, None
  previous_BxT = jnp.pad(documents_BxT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  start_BxT = jax.lax.cummax(jnp.where(documents_BxT != previous_BxT, index_BxT, 0), axis=1)
  mask_Bx1xTxT = (documents_BxT[:, :, None] == documents_BxT[:, None, :])[:, None]
  return index_BxT - start_BxT, mask_Bx1xTxT
