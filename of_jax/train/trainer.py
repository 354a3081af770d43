"""The functions of a config, from its parts, and compiled: init, steps, evaluation, side programs.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped

from of_jax.config import Config, declared_metrics
from of_jax.models.functional import Network, Parameters, build_network
from of_jax.optim import build_optimizer, lay_out, learning_rate_schedule, scale_init
from of_jax.telemetry import registry
from of_jax.telemetry.observe import Telemetry
from of_jax.train.evaluation import Evaluation, Total
from of_jax.train.guard import guarded
from of_jax.train.kinds import SideProgram, side_programs
from of_jax.train.objective import Objective
from of_jax.train.sharding import state_shardings
from of_jax.train.step import Step, Watched
from of_jax.train.types import Batch, Metrics, State

_Step = Callable[[State, Batch, jax.Array], tuple[State, Metrics]]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Everything that a config trains with: pure functions, jitted once.

  `init` maps a key, or a key and the parameters to start from, which it consumes, to a state.

  `step` and `step_measured` map (state, batch, key) to (state, metrics), where metrics holds
  float32 `loss`, `learning_rate`, `grad_norm`, for images `accuracy`, for a loss with TWEO's term
  `tweo`, for one with a user's own `loss_term` (neither multiplied by its weight), and, measured,
  `telemetry`: site -> metric -> [layers], and where the config asks for it `optimizer`: role ->
  metric -> [layers]. They consume the state they are given. `evaluate` maps (params, batch) to sums
  that `add` combines and `finish` turns into metrics.

  `side_programs` has for each family that is measured apart from the step a program that gives such
  `telemetry`, and what it is given; `copied` keeps parameters from being consumed by a step.
  """

  network: Network
  shardings: dict[str, Any]
  init: Wrapped
  step: Wrapped
  step_measured: Wrapped
  evaluate: Wrapped
  add: Wrapped
  finish: Wrapped
  side_programs: Mapping[str, SideProgram]
  copied: Wrapped


@dataclasses.dataclass(frozen=True)
class Functions:
  """The functions that `Trainer` compiles, as they are traced; `plain` is `step` without telemetry,
  and `measured` the same function where nothing is measured in the step."""

  network: Network
  optimizer: optax.GradientTransformation
  init: Callable[..., State]
  plain: _Step
  measured: _Step
  evaluate: Callable[[Parameters, Batch], Total]
  add: Callable[[Total, Total], Total]
  finish: Callable[[Total], Metrics]
  side_programs: Mapping[str, SideProgram]


def make_functions(config: Config) -> Functions:
  """Makes the functions of a resolved config.

  Its numbers may be traced where of_jax.sweep.trainer says so: the functions then belong to the
  trace.
  """
  network = build_network(config)
  schedule = learning_rate_schedule(config.optim, config.train.steps)
  roles, axes, shapes = (
      network.trained(tree) for tree in (network.roles, network.axes, network.shapes))
  optimizer = build_optimizer(config.optim, schedule, roles, axes, shapes)
  for text in config.telemetry.user_metrics:
    registry.load(text)  # A file of the user's that fails says so now.
  objective = Objective(config, network)
  watched = _watched(config)
  step = Step(objective, optimizer, schedule, lay_out(config.optim, roles, axes, shapes), watched)

  def init(key: jax.Array, given: Parameters | None = None) -> State:
    params = network.init(key) if given is None else given
    trained = network.trained(params)
    if given is None:
      trained = scale_init(config.optim, trained, roles, axes)
    return {"params": network.joined(trained, network.running(params)),
            "opt_state": optimizer.init(trained), "step": jnp.int32(0)}

  evaluation = Evaluation(objective, watched.forward)
  plain, measured = (guarded(run, config.train.on_divergence) for run in (
      step.plain, step.measured))
  return Functions(
      network, optimizer, init, plain, plain if watched.is_empty else measured,
      evaluation.evaluate, evaluation.add, evaluation.finish, side_programs(objective))


def _watched(config: Config) -> Watched:
  kind = config.model.kind
  selection = declared_metrics.select(config.telemetry, kind)
  return Watched(
      Telemetry.of(config.telemetry, kind), Telemetry.of(config.telemetry, kind, ("gradients",)),
      selection.ids if declared_metrics.OPTIMIZER in selection.sites else None)


@functools.lru_cache(maxsize=4)
def make_trainer(config: Config, mesh: Mesh) -> Trainer:
  """Makes the trainer of a config. Compiles nothing yet: functions compile at their first calls.

  Args:
    config: resolved.
    mesh: as `of_jax.train.sharding.make_mesh` gives it; it must be set (`jax.set_mesh`) wherever
      the functions are called.
  """
  made = make_functions(config)
  shardings = state_shardings(mesh, made.network, made.optimizer)
  init = jax.jit(made.init, out_shardings=shardings, donate_argnums=1)
  return compile_functions(made, init, shardings, NamedSharding(mesh, PartitionSpec()))


def compile_functions(made: Functions, init: Any, shardings: Any, metrics: NamedSharding
                      ) -> Trainer:
  """Jits everything but `init`, with the state laid out as `shardings` and what is measured as
  `metrics`."""
  def compiled(run: Callable[..., Any]) -> Any:
    return jax.jit(run, out_shardings=metrics)

  def step(run: _Step) -> Any:
    # Without pinned outputs the second call would compile a second executable.
    return jax.jit(run, donate_argnums=0, out_shardings=(shardings, metrics))

  plain = step(made.plain)
  return Trainer(
      made.network, shardings, init, plain,
      plain if made.measured is made.plain else step(made.measured), compiled(made.evaluate),
      compiled(made.add), compiled(made.finish),
      {name: dataclasses.replace(program, run=compiled(program.run))
       for name, program in made.side_programs.items()},
      jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings["params"]))
