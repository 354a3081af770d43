"""The train step, with telemetry or without.

A step is a pure function of (state, batch): the telemetry of a measured step leaves through
statistics that no gradient sees, so both forms train the same parameters bit for bit. What is
costly is measured apart, see of_jax.train.kinds.

Running statistics (role `running`) have their new value in place of a gradient. They bypass the
optimiser, the clipping and the gradient norm, and are averaged over micro-batches.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from of_jax.optim import Layout
from of_jax.optim.measure import measure_step
from of_jax.telemetry.observe import Telemetry, join_metrics
from of_jax.telemetry.slots import statistics_of_squares
from of_jax.train.objective import Objective
from of_jax.train.types import Batch, Metrics, State


@dataclasses.dataclass(frozen=True)
class Watched:
  """Telemetry of a measured step.

  Attributes:
    forward: what one forward pass is enough for.
    gradients: of activations.
    parameters: the metrics of parameters and the optimiser; None for none.
  """

  forward: Telemetry
  gradients: Telemetry
  parameters: frozenset[str] | None

  @property
  def is_empty(self) -> bool:
    """Whether there is nothing to measure."""
    return not self.forward.plan and not self.gradients.plan and self.parameters is None


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """One step of training.

  Attributes:
    objective: what it minimises.
    optimizer: of the trained parameters, with their `layout`.
    schedule: step -> learning rate.
    watched: what the measured step measures.
  """

  objective: Objective
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  layout: Layout
  watched: Watched

  def plain(self, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """Trains on one batch."""
    return self._run(state, batch, key, None)

  def measured(self, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """Trains on one batch alike, and measures."""
    return self._run(state, batch, key, self.watched)

  def _run(self, state: State, batch: Batch, key: jax.Array, watched: Watched | None
           ) -> tuple[State, Metrics]:
    network, micro_batches = self.objective.network, self.objective.config.train.grad_accumulation
    (grads, squares), (means, statistics) = self._gradients(state, batch, key, watched)
    # An average over micro-batches, where gradients add up: the loss is over the whole batch.
    running = jax.tree.map(lambda new: new / micro_batches, network.running(grads))
    grads, params = network.trained(grads), network.trained(state["params"])
    updates, opt_state = self.optimizer.update(grads, state["opt_state"], params)
    metrics = {**means, "learning_rate": self.schedule(state["step"]),
               "grad_norm": optax.tree.norm(grads)}
    if watched:
      of_gradients = watched.gradients
      metrics["telemetry"] = join_metrics(
          watched.forward.finish(statistics),
          of_gradients.finish(statistics_of_squares(
              dict(of_gradients.plan), squares, batch["weights"])))
    if watched and watched.parameters is not None:
      metrics["optimizer"] = measure_step(
          self.layout, params, grads, updates, opt_state, metrics["learning_rate"],
          watched.parameters)
    params = network.joined(optax.apply_updates(params, updates), running)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

  def _gradients(self, state: State, batch: Batch, key: jax.Array, watched: Watched | None) -> Any:
    """(gradients of parameters, of slots), (means, statistics), of all micro-batches together."""
    objective = self.objective
    # The gradients of slots are sums of squared gradients of activations.
    gradient = jax.grad(objective.mean, (0, 1), has_aux=True)
    slots = objective.slots(batch, watched.gradients.sites) if watched else {}
    forward = watched.forward if watched else None

    def add(a: Any, b: Any) -> Any:
      (grads_a, (means_a, statistics_a)), (grads_b, (means_b, statistics_b)) = a, b
      return jax.tree.map(jnp.add, grads_a, grads_b), (
          jax.tree.map(jnp.add, means_a, means_b),
          forward.merge(statistics_a, statistics_b) if forward else {})

    return objective.accumulated(
        lambda part, part_key: gradient(state["params"], slots, part, part_key, forward), add,
        batch, objective.dropout_key(state, key))
