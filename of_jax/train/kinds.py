"""Side programs: telemetry by a program of its own, one for each family that is measured apart.

How a family's program is built, and what it is given, its kind says; see `BUILDERS`. So the train
step is the same executable whether anything is measured apart or not.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from of_jax.config import declared_metrics
from of_jax.config.fields import replaced
from of_jax.models.functional import Network, Parameters, build_network
from of_jax.quantise.in_training import quantised_metrics
from of_jax.telemetry import registry
from of_jax.telemetry.observe import ChangeObserver, SiteStatistics, Telemetry
from of_jax.telemetry.slots import Slots, statistics_of_squares
from of_jax.train.objective import Objective
from of_jax.train.types import Batch, SiteMetrics, State

# What a program is given, and when it runs:
#   before: (state, batch, key) that the step is about to be given;
#   across: (parameters before the step, parameters after it, the fixed batch), after the step;
#   after: (parameters after the step, the fixed batch), after the step.
Given = Literal["before", "across", "after"]


@dataclasses.dataclass(frozen=True)
class SideProgram:
  """A program that measures one family.

  Attributes:
    given: what `run` takes, and when it runs.
    run: gives site -> metric -> values.
  """

  given: Given
  run: Callable[..., SiteMetrics]


Builder = Callable[[Objective, str], SideProgram]
# A compute type, and a precision of matrix products, which TPUs and GPUs have lower ones of.
_FLOAT32 = "float32"


def side_programs(objective: Objective) -> dict[str, SideProgram]:
  """Builds the program of every family that a config measures apart from the step, by name."""
  config = objective.config
  selection = declared_metrics.select(config.telemetry, config.model.kind)
  return {name: BUILDERS[selection.families[name].kind](objective, name)
          for name in declared_metrics.cadences(config.telemetry, config.model.kind)
          if name in selection.sites}


def _of_forward(objective: Objective, name: str) -> SideProgram:
  """Measures what a forward pass of the step's batch is enough for."""
  watched = _watched(objective, name)

  def run(state: State, batch: Batch, key: jax.Array) -> SiteMetrics:
    def of_part(part: Batch, part_key: jax.Array | None) -> SiteStatistics:
      return objective.forward(state["params"], part, part_key, watched, True)[2]

    whole = batch, objective.dropout_key(state, key)
    return watched.finish(objective.accumulated(of_part, watched.merge, *whole)
                          if registry.load(name).adds_up else of_part(*whole))

  return SideProgram("before", run)


def _of_gradients(objective: Objective, name: str) -> SideProgram:
  """Measures gradients of the step's loss with respect to activations, by a backward pass."""
  watched = _watched(objective, name)

  def run(state: State, batch: Batch, key: jax.Array) -> SiteMetrics:
    slots = objective.slots(batch, watched.sites)

    def of_part(part: Batch, part_key: jax.Array | None) -> Slots:
      squares: Slots = jax.grad(
          lambda slots: objective.mean(state["params"], slots, part, part_key, None)[0])(slots)
      return squares

    squares = objective.accumulated(of_part, lambda a, b: jax.tree.map(jnp.add, a, b), batch,
                                    objective.dropout_key(state, key))
    return watched.finish(statistics_of_squares(dict(watched.plan), squares, batch["weights"]))

  return SideProgram("before", run)


def _of_change(objective: Objective, name: str) -> SideProgram:
  """Measures what a step changes, by forward passes of the fixed batch before it and after it.

  They are in float32, products of matrices too, whatever the compute type: most steps move an
  activation by less than bfloat16 tells apart.
  """
  watched, network = _watched(objective, name), _in_float32(objective)

  def run(before: Parameters, after: Parameters, batch: Batch) -> SiteMetrics:
    observe = ChangeObserver(watched, batch["weights"])

    def forward(params: Parameters) -> SiteStatistics:
      return network.stream(params, batch["inputs"], batch.get("documents"), observe=observe)[2]

    with jax.default_matmul_precision(_FLOAT32):
      statistics = jax.vmap(forward, axis_name=observe.AXIS)(jax.tree.map(
          lambda *both: jnp.stack(both), before, after))
    # Each of both forward passes has seen both, and has the same statistics.
    return watched.finish(jax.tree.map(lambda s: s[0], statistics))

  return SideProgram("across", run)


def _of_quantised(objective: Objective, name: str) -> SideProgram:
  """Measures the quantised model after a step, on the fixed batch.

  In float32 like a change: what 8 bits add to the loss is no more than what bfloat16 does.
  """
  del name
  measure = quantised_metrics(_in_float32(objective), objective.config)

  def run(params: Parameters, batch: Batch) -> SiteMetrics:
    with jax.default_matmul_precision(_FLOAT32):
      measured: SiteMetrics = measure(params, batch)
      return measured

  return SideProgram("after", run)


def _in_float32(objective: Objective) -> Network:
  """Builds the network whose activations are float32, whatever the compute type of training."""
  if objective.config.model.compute_dtype == _FLOAT32:
    return objective.network
  return build_network(replaced(objective.config, {"model.compute_dtype": _FLOAT32}))


def _watched(objective: Objective, name: str) -> Telemetry:
  config = objective.config
  return Telemetry.apart(config.telemetry, config.model.kind, name)


# Kind of family, see of_jax.config.declared_metrics.KINDS -> what builds the program of one that is
# measured apart. Families of kind `parameters` are measured in the step alone.
BUILDERS: Mapping[str, Builder] = {
    "activations": _of_forward, "attention": _of_forward, "gradients": _of_gradients,
    "change": _of_change, declared_metrics.QUANTISED: _of_quantised}
