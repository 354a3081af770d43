"""Base of the networks: residual blocks in stacks, an optional norm, an unembedding.

A network says how its inputs enter the stream; from there on the blocks run here, scanned or
unrolled, rematerialised or not, with their probes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import Config, ModelConfig
from of_jax.errors import UserError
from of_jax.models import gpu_attention, partition, splash
from of_jax.models.norms import Norm
from of_jax.models.numerics import Numerics
from of_jax.models.probe import PENALTY, Context, Intervene, Observer, Penalise, Statistics
from of_jax.models.sow import captured

# Kernels of attention stand for the products that they hold.
_policies = jax.checkpoint_policies
_REMAT_POLICIES = {"full": None, "dots": _policies.save_from_both_policies(
    _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable,
                                      _policies.save_only_these_names(splash.RESIDUALS)),
    gpu_attention.keeps)}

# (dropout key or None, number of the block from 1, 0 outside the blocks) -> its context.
MakeContext = Callable[[jax.Array | None, jax.Array | int], Context]


class StackedNetwork(nnx.Module):
  """Base of the networks. A subclass fills the attributes and writes `stream`.

  Consecutive blocks of one class are one stack: their parameters have a leading axis of layers.

  Attributes:
    model: resolved.
    stacks: from the bottom, see `stacked`.
    final_norm: where `model.final_norm` asks for one.
  """

  model: ModelConfig
  stacks: nnx.Dict[Any]
  final_norm: Norm

  @classmethod
  def of_config(cls, config: Config, rngs: nnx.Rngs) -> "StackedNetwork":
    """Makes the network of a resolved config, its parameters drawn from the stream `params`."""
    raise NotImplementedError

  def __call__(self, inputs: jax.Array, documents_BxT: jax.Array | None = None, *,
               dropout_key: jax.Array | None = None, observe: Observer | None = None,
               training: bool = False) -> tuple[jax.Array, dict[str, Statistics]]:
    """Computes logits [batch, time, vocabulary], at least float32; arguments and statistics are
    those of `stream`."""
    x_BxTxD, statistics = self.stream(
        inputs, documents_BxT, dropout_key=dropout_key, observe=observe, training=training)
    logits_BxTxV = jnp.tensordot(x_BxTxD, self.unembedding_table().astype(x_BxTxD.dtype), 1,
                                 preferred_element_type=jnp.promote_types(
                                     x_BxTxD.dtype, jnp.float32))
    cap = self.model.logit_cap
    return logits_BxTxV if cap is None else cap * jnp.tanh(logits_BxTxV / cap), statistics

  def unembedding_table(self) -> jax.Array:
    """Returns [width, vocabulary or classes]: logits are the stream times this, before any cap."""
    raise NotImplementedError

  def stream(self, inputs: jax.Array, documents_BxT: jax.Array | None = None, *,
             dropout_key: jax.Array | None = None, observe: Observer | None = None,
             intervene: Intervene | None = None, penalise: Penalise | None = None,
             training: bool = False, numerics: Numerics | None = None
             ) -> tuple[jax.Array, dict[str, Statistics]]:
    """Computes everything before the unembedding.

    Args:
      inputs: tokens int32 [batch, time], below the vocabulary size, or images float32
        [batch, 1, input size].
      documents_BxT: number of the document that each token belongs to, rising along the time
        axis. Given, attention stays inside a document and positions restart in each.
      dropout_key: given in training, where dropout is to act.
      observe: what the probes keep, see of_jax.models.probe.
      intervene: what the probes change, for analysis; None in training.
      penalise: of each block's output, for the loss: the statistics have it as PENALTY.
      training: whether norms that have them use batch statistics; else running ones, frozen.
      numerics: with which numbers to compute, see Numerics; None as they are, as in training.

    Returns:
      the input of the unembedding, [batch, time, width] in the compute type, and site ->
      statistic -> array with a leading axis of layers.
    """
    raise NotImplementedError

  def enter(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    """Maps what the inputs became to the stream entering the first block, before dropout."""
    del context
    return x_BxTxD

  def leave(self, x_BxTxD: jax.Array) -> jax.Array:
    """Maps the stream behind the final norm to what the unembedding reads."""
    return x_BxTxD

  def run_stacks(self, x_BxTxD: jax.Array, context: MakeContext, dropout_key: jax.Array | None,
                 penalise: Penalise | None = None) -> tuple[jax.Array, dict[str, Statistics]]:
    """Runs everything between the inputs' vectors and the unembedding; returns as `stream` does."""
    keys_L = None
    outer = context(None, 0)
    if dropout_key is not None:
      outer.dropout_key, stack_key = jax.random.split(dropout_key)
      keys_L = jax.random.split(stack_key, self.model.depth)
    entering_BxTxD = captured(lambda network: network.enter(x_BxTxD, outer), self, outer,
                              self.model)
    x_BxTxD = outer.dropout(entering_BxTxD, self.model.embedding_dropout)

    collected: list[dict[str, Statistics]] = []
    start = 0
    for stack in self.stacks.values():
      depth = jax.tree.leaves(nnx.state(stack, nnx.Param))[0].shape[0]
      keys = None if keys_L is None else keys_L[start:start + depth]
      layers_L = jnp.arange(start + 1, start + depth + 1)
      x_BxTxD, statistics = self._run_stack(stack, x_BxTxD, keys, layers_L, context, penalise)
      collected.append(statistics)
      start += depth

    leaving_BxTxD = outer.at("resid_post", x_BxTxD)
    x_BxTxD = captured(lambda network: network._normed_and_left(leaving_BxTxD, outer), self, outer,
                       self.model)
    x_BxTxD = outer.probe("final", x_BxTxD)
    return x_BxTxD, _joined(collected, outer.collected)

  def _normed_and_left(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    if self.model.final_norm:
      x_BxTxD = context.at("final_norm", self.final_norm(x_BxTxD, context))
    return self.leave(x_BxTxD)

  def _run_stack(self, stack: nnx.Module, x_BxTxD: jax.Array, keys: jax.Array | None,
                 layers_L: jax.Array, context: MakeContext, penalise: Penalise | None
                 ) -> tuple[jax.Array, dict[str, Statistics]]:
    graph, parameters_L = nnx.split(stack)

    def body(x: jax.Array, xs: tuple[Any, Any, jax.Array]
             ) -> tuple[jax.Array, dict[str, Statistics]]:
      parameters, key, layer = xs
      block_context = context(key, layer)
      block = nnx.merge(graph, parameters)
      entering = block_context.probe("resid_pre", x)
      x = captured(lambda block: block(entering, block_context), block, block_context, self.model)
      collected: dict[str, Any] = block_context.collected
      if penalise is not None:
        collected[PENALTY] = penalise(x)
      return partition.constrain_batch(x), collected

    if self.model.remat != "none":
      body = jax.checkpoint(body, policy=_REMAT_POLICIES[self.model.remat],
                            prevent_cse=not self.model.scan_layers)
    if self.model.scan_layers:
      return jax.lax.scan(body, x_BxTxD, (parameters_L, keys, layers_L))
    # unstack's gradient is one concatenation; indexing's would be a sum over padded copies.
    leaves, structure = jax.tree.flatten((parameters_L, keys, layers_L))
    collected = []
    for layer_leaves in zip(*map(jnp.unstack, leaves)):
      x_BxTxD, statistics = body(x_BxTxD, jax.tree.unflatten(structure, layer_leaves))
      collected.append(statistics)
    return x_BxTxD, jax.tree.map(lambda *s: jnp.stack(s), *collected)


def _joined(of_stacks: list[dict[str, Statistics]], outside: dict[str, Statistics]
            ) -> dict[str, Statistics]:
  """Joins the statistics of consecutive stacks along the layers; those outside are one layer."""
  if apart := set().union(*of_stacks) - set(of_stacks[0]).intersection(*of_stacks):
    raise UserError(f"{', '.join(sorted(apart))}: a site of some blocks of the network alone")
  if twice := set(of_stacks[0]) & set(outside):
    raise UserError(f"telemetry.sites: {', '.join(sorted(twice))} is sown in the blocks and "
                    "outside of them; name the place, as in telemetry.sites=attention_norm.my_site")
  statistics: dict[str, Statistics] = jax.tree.map(
      lambda *parts: jnp.concatenate(parts), *of_stacks)
  return {**statistics, **jax.tree.map(lambda s: s[None], outside)}


def stacked(block: Callable[[nnx.Rngs, ModelConfig], nnx.Module], count: int, model: ModelConfig,
            rngs: nnx.Rngs) -> nnx.Module:
  """Makes `count` blocks as one, each parameter with a leading axis of layers."""

  @nnx.split_rngs(splits=count)
  @nnx.vmap(in_axes=0, out_axes=0)
  def make(rngs: nnx.Rngs) -> nnx.Module:
    return block(rngs, model)

  return make(rngs)
