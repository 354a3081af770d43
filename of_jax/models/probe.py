"""Probes take statistics out of a forward pass, and are where an analysis changes one.

A layer says where (`x = context.probe("resid_mid", x)`), the observer says what. The observer's
result, never the activation, leaves the layer: under a scan an activation would be kept for
every layer. The layer goes on with what the probe gives back, which is `x` itself unless an
analysis intervenes. Site names are public: see SITES. A variant adds names of its own by Flax's
`sow`, see of_jax.models.sow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from of_jax.config import ModelConfig
from of_jax.models.numerics import Numerics
from of_jax.models.parameter import Linear

SITES = ("resid_pre", "resid_mid", "attn_in", "attn_out", "mlp_in", "mlp_hidden", "mlp_out",
         "attn_q", "attn_k", "final")

# A tree of arrays; under a scan they come out stacked by layer.
Statistics = dict[str, Any]
# (site, x_BxTxD, first_BxT) -> what to keep, or None where the site is not wanted. `first` marks
# the tokens at position 0, which attend to themselves alone; None is the first of every row.
Observer = Callable[[str, jax.Array, jax.Array | None], Statistics | None]
# The method `of_attention` of an observer that has one: (q_BxTxHxK, k_BxSxGxK, weigh, first_BxT)
# -> what to keep, or None. `weigh` maps queries, all keys and the number of the first query to the
# logits that the softmax reads and the weights that it gives, both float32 [batch, heads, queries,
# keys]. Keys beyond the tokens' stand first.
Weigh = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
OfAttention = Callable[[jax.Array, jax.Array, Weigh, jax.Array | None], Statistics | None]
# (site, x_BxTxD, number of the block as in Context) -> what the layer goes on with.
Intervene = Callable[[str, jax.Array, jax.Array | int], jax.Array]
# x_BxTxD leaving a block -> a number that gradients flow through, for a term of the loss.
Penalise = Callable[[jax.Array], jax.Array]
# Where the statistics have those numbers, [layers]; no site.
PENALTY = "penalty"


@dataclasses.dataclass
class Context:
  """Context of a block: what it needs beside its input, and what its probes collected.

  Attributes:
    positions_BxT: position of each token, from 0 in its window or in its document.
    mask_Bx1xTxT: true where attention is allowed beside causality, or None for everywhere.
    documents_BxT: what that mask is made of, where it is made of documents.
    layer: the block's number, from 1 at the bottom; 0 outside the blocks.
    dropout_rate: probability that a value is dropped; used only with a key.
    dropout_key: None in evaluation.
    observe: see Observer; None measures nothing.
    intervene: see Intervene; None, as in training, changes nothing.
    training: whether batch statistics act and running statistics are renewed.
    first_BxT: true for the tokens at position 0, or None for the first of every row.
    numerics: see Numerics; None, as in training, changes nothing.
    is_causal: whether a token attends to itself and what is before it alone, or to all tokens.
    collected: site -> statistics.
  """

  positions_BxT: jax.Array
  mask_Bx1xTxT: jax.Array | None = None
  layer: jax.Array | int = 0
  dropout_rate: float = 0.0
  dropout_key: jax.Array | None = None
  observe: Observer | None = None
  intervene: Intervene | None = None
  training: bool = False
  first_BxT: jax.Array | None = None
  documents_BxT: jax.Array | None = None
  numerics: Numerics | None = None
  is_causal: bool = True
  collected: dict[str, Statistics] = dataclasses.field(default_factory=dict)
  _dropouts: int = 0

  def probe(self, site: str, x_BxTxD: jax.Array) -> jax.Array:
    """Returns `x`, or what the intervention makes of it, and collects its statistics on the way.

    No gradient flows through the statistics.
    """
    x_BxTxD = _gathered(x_BxTxD)
    if self.intervene is not None:
      x_BxTxD = self.intervene(site, x_BxTxD, self.layer)
    x_BxTxD = self.at(site, x_BxTxD)
    self.observe_at(site, x_BxTxD)
    return x_BxTxD

  def observe_at(self, site: str, x_BxTxD: jax.Array) -> bool:
    """Collects the observer's statistics of `x`; whether it wants any at this site."""
    if self.observe is None:
      return False
    kept = self.observe(site, jax.lax.stop_gradient(x_BxTxD), self.first_BxT)
    self._keep(site, kept)
    return kept is not None

  def probe_heads(self, site: str, x_BxTxHxK: jax.Array) -> jax.Array:
    """Probes [..., heads, head_dim] like `probe`: the site's neurons are those of all heads."""
    return self.probe(site, flatten_heads(x_BxTxHxK)).reshape(x_BxTxHxK.shape)

  def at(self, site: str, x: jax.Array) -> jax.Array:
    """Replaces [..., neurons] as the numerics have it; `x` itself without any."""
    if self.numerics is None:
      return x
    y, kept = self.numerics.activation(site, x, self.layer)
    self._keep(site, kept)
    return y

  def at_heads(self, site: str, x_BxTxHxK: jax.Array) -> jax.Array:
    """Replaces [..., heads, head_dim] like `at`."""
    if self.numerics is None:
      return x_BxTxHxK
    return self.at(site, flatten_heads(x_BxTxHxK)).reshape(x_BxTxHxK.shape)

  def linear(self, name: str, site: str, linear: Linear, x: jax.Array) -> jax.Array:
    """Applies the linear map `name`, which reads `site`, as the numerics have it."""
    if self.numerics is None:
      return linear(x)
    y, kept = self.numerics.product(name, site, linear, x, self.layer)
    self._keep(name, kept)
    return y

  def _keep(self, name: str, kept: Statistics | None) -> None:
    if kept is not None:
      assert name not in self.collected, f"{name} met twice in one block"
      self.collected[name] = kept

  def probe_attention(self, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, weigh: Weigh) -> None:
    """Collects the observer's statistics of attention, as if it were a site, if it wants any.

    The weights are computed again from copies of queries and keys that no gradient sees, so that
    the path that is trained is one function, measured or not.
    """
    observe: OfAttention | None = getattr(self.observe, "of_attention", None)
    if observe is None:
      return
    statistics = observe(jax.lax.stop_gradient(q_BxTxHxK), jax.lax.stop_gradient(k_BxSxGxK),
                         weigh, self.first_BxT)
    if statistics is not None:
      self.collected["attention"] = statistics

  def dropout(self, x: jax.Array, rate: float | None = None) -> jax.Array:
    """Drops entries of `x` and scales up the rest, in training; gives `x` in evaluation.

    What is dropped is a function of the key, the number of such calls in this context before and
    the shape: of seed, step, block and place.

    Args:
      rate: where it is not `dropout_rate`.
    """
    rate = self.dropout_rate if rate is None else rate
    if self.dropout_key is None or not rate:
      return x
    key = jax.random.fold_in(self.dropout_key, self._dropouts)
    self._dropouts += 1
    keep = 1 - rate
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0).astype(x.dtype)


def uses_dropout(model: ModelConfig) -> bool:
  """Tells whether training needs a key."""
  return bool(model.dropout or model.embedding_dropout or model.attention_dropout)


@jax.custom_vjp
def _gathered(x: jax.Array) -> jax.Array:
  """Returns x, whose gradient is summed over its readers here before those elsewhere are added.

  Watching gradients at a site needs that sum. Without it the sum of all that reads `x`, a block's
  input that is also its skip's, would have another order and other bits when nothing is watched.
  """
  return x


_gathered.defvjp(lambda x: (x, None), lambda _, g: (g,))


def flatten_heads(x_BxTxHxK: jax.Array) -> jax.Array:
  """Maps [..., heads, head_dim] to [..., heads x head_dim], the neurons of a per-head site."""
  return x_BxTxHxK.reshape(*x_BxTxHxK.shape[:-2], -1)
