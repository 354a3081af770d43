"""The objective: one forward pass of a batch, what training minimises of it, and how a batch is
taken part by part where gradients are accumulated.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from of_jax.config import Config
from of_jax.models.functional import Network, Parameters
from of_jax.models.probe import PENALTY, Penalise, uses_dropout
from of_jax.objectives import terms
from of_jax.objectives.losses import Sums
from of_jax.objectives.tasks import task_of
from of_jax.telemetry.observe import SiteStatistics, Telemetry
from of_jax.telemetry.slots import SlotObserver, Slots, leave_squares_in
from of_jax.train.types import Batch, State


def objective_of(config: Config, x_BxTxD: jax.Array, table_DxV: jax.Array, batch: Batch
                 ) -> tuple[jax.Array, Sums]:
  """Computes the objective of the kind of model and its parts, summed over the batch's tokens."""
  return task_of(config.model.kind).objective(
      config, x_BxTxD, table_DxV, batch, config.train.z_loss)


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """The objective of a config, on a whole batch or part by part.

  Attributes:
    config: resolved.
    network: of that config.
  """

  config: Config
  network: Network

  def forward(self, params: Parameters, batch: Batch, key: jax.Array | None,
              watched: Telemetry | None, training: bool, slots: Slots | None = None,
              penalise: Penalise | None = None
              ) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Runs the network up to the unembedding.

    Args:
      params: of the network.
      batch: of which `inputs`, `weights` and, if there are any, `documents` are read.
      key: of dropout; None for none.
      watched: what is measured on the way.
      training: whether batch statistics act and running statistics are renewed.
      slots: to be left squares in, see of_jax.telemetry.slots.
      penalise: see of_jax.models.probe.Penalise.

    Returns:
      the stream before the unembedding, the unembedding, and the statistics.
    """
    return self.network.stream(
        params, batch["inputs"], batch.get("documents"), dropout_key=key, training=training,
        observe=watched.observer(batch["weights"]) if watched else None,
        intervene=leave_squares_in(slots) if slots else None, penalise=penalise)

  def sums(self, params: Parameters, batch: Batch, key: jax.Array | None,
           watched: Telemetry | None, training: bool, slots: Slots | None = None
           ) -> tuple[jax.Array, tuple[Sums, SiteStatistics]]:
    """Computes the objective, its parts and the statistics, summed over the batch's tokens."""
    train = self.config.train
    penalise = terms.penalty(train, batch["weights"]) if training else None
    x_BxTxD, table_DxV, statistics = self.forward(
        params, batch, key, watched, training, slots, penalise)
    objective, parts = objective_of(self.config, x_BxTxD, table_DxV, batch)
    if penalise is not None:
      name, weight = terms.of(train)
      parts = {**parts, name: jnp.mean(statistics.pop(PENALTY))}
      objective += weight * parts[name]
    return objective, (parts, statistics)

  def mean(self, params: Parameters, slots: Slots, batch: Batch, key: jax.Array | None,
           watched: Telemetry | None) -> tuple[jax.Array, tuple[Sums, SiteStatistics]]:
    """Computes a batch's share of the mean over the step's tokens, as training differentiates it.

    Returns:
      the objective; the means of its parts, and the statistics.
    """
    train = self.config.train
    tokens = train.batch_size * train.sequence_length
    objective, (parts, statistics) = self.sums(params, batch, key, watched, True, slots)
    means = {name: part / tokens for name, part in parts.items() if name != "count"}
    return objective / tokens, (means, statistics)

  def accumulated(self, of_part: Callable[[Batch, jax.Array | None], Any],
                  add: Callable[[Any, Any], Any], batch: Batch, key: jax.Array | None) -> Any:
    """Adds up what `of_part(batch, key)` gives for each micro-batch in turn."""
    micro_batches = self.config.train.grad_accumulation
    if micro_batches == 1:
      return of_part(batch, key)
    # Row r goes to micro-batch r % micro_batches, so that a device's rows stay on the device.
    split = jax.tree.map(
        lambda rows: rows.reshape(-1, micro_batches, *rows.shape[1:]).swapaxes(0, 1), batch)
    keys = None if key is None else jax.random.split(key, micro_batches)
    first, rest = jax.tree.map(lambda x: x[0], (split, keys)), jax.tree.map(
        lambda x: x[1:], (split, keys))

    return jax.lax.scan(lambda total, part: (add(total, of_part(*part)), None),
                        of_part(*first), rest)[0]

  def slots(self, batch: Batch, sites: Collection[str]) -> Slots:
    """Makes zeros for the squares of the gradients at `sites`, see of_jax.telemetry.slots."""
    observe = SlotObserver(sites)
    zeros: Slots = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(
        lambda params: self.network.stream(params, batch["inputs"], batch.get("documents"),
                                           observe=observe)[2], self.network.shapes))
    return zeros

  def dropout_key(self, state: State, key: jax.Array) -> jax.Array | None:
    """Makes the key of a step's dropout; None for a model without it."""
    return jax.random.fold_in(key, state["step"]) if uses_dropout(self.config.model) else None
