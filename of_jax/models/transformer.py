"""Decoder-only transformer: tokens in, logits and the statistics of its probes out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models import partition
from of_jax.models.blocks import Block, plan_stack
from of_jax.models.embedding_projection import EmbeddingProjection
from of_jax.models.norms import make_norm
from of_jax.models.parameter import Linear, normal, parameter
from of_jax.models.probe import Context, Observer, Statistics

_REMAT_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class Embedding(nnx.Module):
  """scale x (token table + position table): [batch, time] -> [batch, time, width].

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


class Transformer(nnx.Module):
  """Embedding, a stack of blocks, an optional norm, and an unembedding without bias.

  The embedding may be projected and then normed, what the unembedding reads normed and then
  projected.

  Consecutive blocks of one class are one stack: their parameters have a leading axis of layers.
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
        str(i): _stacked(block, count, model, rngs)
        for i, (block, count) in enumerate(plan_stack(model))})
    if model.embedding_norm:
      self.embedding_norm = make_norm(model.norm, rngs, model)
    if model.embedding_projection:
      self.embedding_projection = EmbeddingProjection(rngs, model)
    if model.final_norm:
      self.final_norm = make_norm(model.norm, rngs, model)
    if not model.tied_embeddings:
      self.unembedding = Linear(rngs, (model.width, vocab_size), ("embed", "vocab"),
                                model.init_std, role="unembedding")

  def __call__(self, tokens_BxT: jax.Array, documents_BxT: jax.Array | None = None, *,
               dropout_key: jax.Array | None = None, observe: Observer | None = None,
               training: bool = False) -> tuple[jax.Array, dict[str, Statistics]]:
    """As `stream`, but with float32 logits [batch, time, vocabulary] in place of the stream."""
    x_BxTxD, statistics = self.stream(
        tokens_BxT, documents_BxT, dropout_key=dropout_key, observe=observe, training=training)
    logits_BxTxV = jnp.tensordot(x_BxTxD, self.unembedding_table().astype(x_BxTxD.dtype), 1,
                                 preferred_element_type=jnp.float32)
    return logits_BxTxV, statistics

  def unembedding_table(self) -> jax.Array:
    """[width, vocabulary]: logits are the stream times this."""
    if self.model.tied_embeddings:
      return self.embedding.token[...].T
    return self.unembedding.kernel[...]

  def stream(self, tokens_BxT: jax.Array, documents_BxT: jax.Array | None = None, *,
             dropout_key: jax.Array | None = None, observe: Observer | None = None,
             training: bool = False) -> tuple[jax.Array, dict[str, Statistics]]:
    """Everything before the unembedding.

    Args:
      tokens_BxT: int32, below the vocabulary size.
      documents_BxT: number of the document that each token belongs to, rising along the time
        axis. Given, attention stays inside a document and positions restart in each.
      dropout_key: given in training, where dropout is to act.
      observe: what the probes keep, see of_jax.models.probe.
      training: whether norms that have them use batch statistics; else running ones, frozen.

    Returns:
      what the unembedding reads, [batch, time, width] in the compute type, and site ->
      statistic -> array with a leading axis of layers.
    """
    positions_BxT, mask_Bx1xTxT = _positions_and_mask(tokens_BxT, documents_BxT)

    def context(key: jax.Array | None, layer: jax.Array | int = 0) -> Context:
      return Context(positions_BxT, mask_Bx1xTxT, layer, self.model.dropout, key, observe,
                     training)

    keys_L = None
    outer = context(None)
    if dropout_key is not None:
      outer.dropout_key, stack_key = jax.random.split(dropout_key)
      keys_L = jax.random.split(stack_key, self.model.depth)
    x_BxTxD = self.embedding(tokens_BxT, positions_BxT)
    if self.model.embedding_projection:
      x_BxTxD = self.embedding_projection.enter(x_BxTxD)
    if self.model.embedding_norm:
      x_BxTxD = self.embedding_norm(x_BxTxD, outer)
    x_BxTxD = outer.dropout(x_BxTxD)

    collected: list[dict[str, Statistics]] = []
    start = 0
    for stack in self.stacks.values():
      depth = jax.tree.leaves(nnx.state(stack, nnx.Param))[0].shape[0]
      keys = None if keys_L is None else keys_L[start:start + depth]
      layers_L = jnp.arange(start + 1, start + depth + 1)
      x_BxTxD, statistics = self._run_stack(stack, x_BxTxD, keys, layers_L, context)
      collected.append(statistics)
      start += depth

    if self.model.final_norm:
      x_BxTxD = self.final_norm(x_BxTxD, outer)
    if self.model.embedding_projection:
      x_BxTxD = self.embedding_projection.leave(x_BxTxD)
    outer.probe("final", x_BxTxD)
    statistics = jax.tree.map(lambda *parts: jnp.concatenate(parts), *collected)
    statistics.update(jax.tree.map(lambda s: s[None], outer.collected))
    return x_BxTxD, statistics

  def _run_stack(self, stack: Block, x_BxTxD: jax.Array, keys: jax.Array | None,
                 layers_L: jax.Array, context: Callable[[jax.Array | None, jax.Array], Context]
                 ) -> tuple[jax.Array, dict[str, Statistics]]:
    graph, stacked = nnx.split(stack)

    def body(x: jax.Array, xs: tuple[Any, Any, jax.Array]
             ) -> tuple[jax.Array, dict[str, Statistics]]:
      parameters, key, layer = xs
      block_context = context(key, layer)
      block_context.probe("resid_pre", x)
      x = nnx.merge(graph, parameters)(x, block_context)
      return partition.constrain_batch(x), block_context.collected

    if self.model.remat != "none":
      body = jax.checkpoint(body, policy=_REMAT_POLICIES[self.model.remat],
                            prevent_cse=not self.model.scan_layers)
    if self.model.scan_layers:
      return jax.lax.scan(body, x_BxTxD, (stacked, keys, layers_L))
    # unstack's gradient is one concatenation; indexing's would be a sum over padded copies.
    leaves, structure = jax.tree.flatten((stacked, keys, layers_L))
    collected = []
    for layer_leaves in zip(*map(jnp.unstack, leaves)):
      x_BxTxD, statistics = body(x_BxTxD, jax.tree.unflatten(structure, layer_leaves))
      collected.append(statistics)
    return x_BxTxD, jax.tree.map(lambda *s: jnp.stack(s), *collected)


def _stacked(block: type[Block], count: int, model: ModelConfig, rngs: nnx.Rngs) -> Block:
  """`count` blocks as one, each parameter with a leading axis of layers."""

  @nnx.split_rngs(splits=count)
  @nnx.vmap(in_axes=0, out_axes=0)
  def make(rngs: nnx.Rngs) -> Block:
    return block(rngs, model)

  return make(rngs)


def _positions_and_mask(tokens_BxT: jax.Array, documents_BxT: jax.Array | None
                        ) -> tuple[jax.Array, jax.Array | None]:
  index_BxT = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
  if documents_BxT is None:
    return index_BxT, None
  previous_BxT = jnp.pad(documents_BxT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  start_BxT = jax.lax.cummax(jnp.where(documents_BxT != previous_BxT, index_BxT, 0), axis=1)
  mask_Bx1xTxT = (documents_BxT[:, :, None] == documents_BxT[:, None, :])[:, None]
  return index_BxT - start_BxT, mask_Bx1xTxT
