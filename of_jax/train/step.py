"""The compiled train step and evaluation step, each with telemetry or without.

A step is a pure function of (state, batch): the telemetry of a measured step leaves through
statistics that no gradient sees, so both forms train the same parameters bit for bit. What is
costly is measured apart, by forward passes of their own on the step's batch.

Running statistics (role `running`) have their new value in place of a gradient. They bypass the
optimiser, the clipping and the gradient norm, and are averaged over micro-batches.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from of_jax.config import Config, declared_metrics
from of_jax.models.functional import Network, build_network
from of_jax.models.probe import PENALTY, Penalise, uses_dropout
from of_jax.objectives import tweo
from of_jax.objectives.losses import Sums
from of_jax.objectives.tasks import task_of
from of_jax.optim import build_optimizer, lay_out, learning_rate_schedule, scale_init
from of_jax.optim.measure import measure_step
from of_jax.quantise.in_training import quantised_metrics
from of_jax.telemetry import registry
from of_jax.telemetry.families.gradients import (
    SlotObserver,
    leave_squares_in,
    statistics_of_squares,
)
from of_jax.telemetry.observe import ChangeObserver, SiteStatistics, Telemetry
from of_jax.train.sharding import state_shardings

State = dict[str, Any]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """What a config trains: pure functions, jitted once.

  `init` maps a key, or a key and the parameters to start from, which it consumes, to a state.

  `step` and `step_measured` map (state, batch, key) to (state, metrics), where metrics holds
  float32 `loss`, `learning_rate`, `grad_norm`, for images `accuracy`, for a loss with TWEO's term
  `tweo` (not multiplied by its weight), and, measured, `telemetry`: site -> metric -> [layers], and
  where the config asks for it `optimizer`: role -> metric -> [layers]. They consume the state they
  are given. `evaluate` maps (params, batch) to sums that `add` combines and `finish` turns into
  metrics.

  `apart` has for each costly family a map of (state, batch, key) to such `telemetry` of the model
  before the step. `change` maps (params before a step, params after it, a batch) to the telemetry
  of what the step changed, and `copied` keeps parameters from being consumed by it. `quantised`
  maps (params, a batch) to the telemetry of the quantised model.
  """

  network: Network
  shardings: State
  init: Any
  step: Any
  step_measured: Any
  evaluate: Any
  add: Any
  finish: Any
  apart: Mapping[str, Any]
  change: Any
  quantised: Any
  copied: Any


@dataclasses.dataclass(frozen=True)
class Functions:
  """What `Trainer` compiles, as it is traced; `plain` is `step` without telemetry."""

  network: Network
  optimizer: optax.GradientTransformation
  init: Any
  plain: Any
  measured: Any
  evaluate: Any
  add: Any
  finish: Any
  apart: Mapping[str, Any]
  change: Any
  quantised: Any


def make_functions(config: Config) -> Functions:
  """The functions of a resolved config.

  Its numbers may be traced where of_jax.sweep.trainer says so: the functions then belong to the
  trace.
  """
  network = build_network(config)
  schedule = learning_rate_schedule(config.optim, config.train.steps)
  layout_of = [network.trained(tree) for tree in (network.roles, network.axes, network.shapes)]
  optimizer = build_optimizer(config.optim, schedule, *layout_of)
  layout = lay_out(config.optim, *layout_of)
  for text in config.telemetry.user_metrics:
    registry.load(text)  # A file of the user's that fails says so now.
  kind, task = config.model.kind, task_of(config.model.kind)
  telemetry = Telemetry.of(config.telemetry, kind)
  of_gradients = Telemetry.of(config.telemetry, kind, "gradients")
  selection = declared_metrics.select(config.telemetry, kind)
  measures_optimizer = declared_metrics.OPTIMIZER in selection.sites
  micro_batches = config.train.grad_accumulation
  tokens = config.train.batch_size * config.train.sequence_length

  def init(key: jax.Array, given: Any = None) -> State:
    params = network.init(key) if given is None else given
    trained = network.trained(params)
    if given is None:
      trained = scale_init(config.optim, trained, *layout_of[:2])
    return {"params": network.joined(trained, network.running(params)),
            "opt_state": optimizer.init(trained), "step": jnp.int32(0)}

  def statistics_of(params: Any, batch: Batch, key: jax.Array | None, watched: Telemetry | None,
                    training: bool, slots: Any = None, penalise: Penalise | None = None
                    ) -> tuple[jax.Array, jax.Array, Any]:
    """The stream before the unembedding, the unembedding, and the statistics."""
    return network.stream(
        params, batch["inputs"], batch.get("documents"), dropout_key=key, training=training,
        observe=watched.observer(batch["weights"]) if watched else None,
        intervene=leave_squares_in(slots) if slots else None, penalise=penalise)

  def sums(params: Any, batch: Batch, key: jax.Array | None, watched: Telemetry | None,
           training: bool, slots: Any = None) -> tuple[jax.Array, tuple[Sums, SiteStatistics]]:
    penalise = tweo.penalty(config.train, batch["weights"]) if training else None
    x_BxTxD, table_DxV, statistics = statistics_of(
        params, batch, key, watched, training, slots, penalise)
    objective, parts = task.objective(config, x_BxTxD, table_DxV, batch, config.train.z_loss)
    if penalise is not None:
      parts = {**parts, "tweo": jnp.mean(statistics.pop(PENALTY))}
      objective += config.train.tweo_weight * parts["tweo"]
    return objective, (parts, statistics)

  def loss(params: Any, slots: Any, batch: Batch, key: jax.Array | None,
           watched: Telemetry | None) -> tuple[jax.Array, tuple[Sums, SiteStatistics]]:
    objective, (parts, statistics) = sums(params, batch, key, watched, True, slots)
    means = {name: part / tokens for name, part in parts.items() if name != "count"}
    return objective / tokens, (means, statistics)

  # The gradients of slots are sums of squared gradients of activations.
  gradient = jax.grad(loss, (0, 1), has_aux=True)

  def accumulated(of_part: Any, add: Any, batch: Batch, key: jax.Array | None) -> Any:
    """What `of_part(batch, key)` gives for each micro-batch in turn, added up."""
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

  def dropout_key(state: State, key: jax.Array) -> jax.Array | None:
    return jax.random.fold_in(key, state["step"]) if uses_dropout(config.model) else None

  def new_slots(batch: Batch) -> Any:
    """Zeros, of the sites whose gradients are watched: site -> [layers, width]."""
    observe = SlotObserver(of_gradients.sites)
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(
        lambda params: network.stream(params, batch["inputs"], batch.get("documents"),
                                      observe=observe)[2], network.shapes))

  def step(watched: Telemetry | None) -> Any:
    def run(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, Any]]:
      slots = new_slots(batch) if watched else {}

      def add(a: Any, b: Any) -> Any:
        (grads_a, (means_a, statistics_a)), (grads_b, (means_b, statistics_b)) = a, b
        return jax.tree.map(jnp.add, grads_a, grads_b), (
            jax.tree.map(jnp.add, means_a, means_b),
            watched.merge(statistics_a, statistics_b) if watched else {})

      (grads, squares), (means, statistics) = accumulated(
          lambda part, part_key: gradient(state["params"], slots, part, part_key, watched), add,
          batch, dropout_key(state, key))
      # An average over micro-batches, where gradients add up: the loss is over the whole batch.
      running = jax.tree.map(lambda new: new / micro_batches, network.running(grads))
      grads, params = network.trained(grads), network.trained(state["params"])
      updates, opt_state = optimizer.update(grads, state["opt_state"], params)
      metrics = {**means, "learning_rate": schedule(state["step"]),
                 "grad_norm": optax.tree.norm(grads)}
      if watched:
        metrics["telemetry"] = _joined(
            watched.finish(statistics),
            of_gradients.finish(statistics_of_squares(squares, batch["weights"])))
      if watched and measures_optimizer:
        metrics["optimizer"] = measure_step(
            layout, params, grads, updates, opt_state, metrics["learning_rate"], selection.ids)
      params = network.joined(optax.apply_updates(params, updates), running)
      return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return run

  def measured_apart(name: str) -> Any:
    watched = Telemetry.of(config.telemetry, kind, apart=name)

    def run(state: State, batch: Batch, key: jax.Array) -> Any:
      def of_part(part: Batch, part_key: jax.Array | None) -> Any:
        return statistics_of(state["params"], part, part_key, watched, True)[2]

      whole = batch, dropout_key(state, key)
      return watched.finish(accumulated(of_part, watched.merge, *whole)
                            if registry.load(name).adds_up else of_part(*whole))

    return run

  def change(before: Any, after: Any, batch: Batch) -> Any:
    watched = Telemetry.of(config.telemetry, kind, apart="moment_updates")
    observe = ChangeObserver(watched, batch["weights"])

    def run(params: Any) -> Any:
      return network.stream(params, batch["inputs"], batch.get("documents"), observe=observe)[2]

    statistics = jax.vmap(run, axis_name=observe.AXIS)(jax.tree.map(
        lambda *both: jnp.stack(both), before, after))
    # Each of both forward passes has seen both, and has the same statistics.
    return watched.finish(jax.tree.map(lambda s: s[0], statistics))

  def evaluate(params: Any, batch: Batch) -> Any:
    return sums(params, batch, None, telemetry, training=False)[1]

  def add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a[0], b[0]), telemetry.merge(a[1], b[1])

  def finish(total: Any) -> dict[str, Any]:
    totals, statistics = total
    means = {name: total / totals["count"] for name, total in totals.items() if name != "count"}
    return {**means, "telemetry": telemetry.finish(statistics)}

  plain = step(None)
  return Functions(
      network, optimizer, init, plain,
      step(telemetry) if telemetry.plan or of_gradients.plan or measures_optimizer else plain,
      evaluate, add, finish,
      {name: measured_apart(name) for name, family in selection.families.items()
       if name in selection.sites and family.every and family.kind != "change"}, change,
      quantised_metrics(network, config))


@functools.lru_cache(maxsize=4)
def make_trainer(config: Config, mesh: Mesh) -> Trainer:
  """Compiles nothing yet: every function compiles at its first call.

  Args:
    config: resolved.
    mesh: as `of_jax.train.sharding.make_mesh` gives it; it must be set (`jax.set_mesh`) wherever
      the functions are called.
  """
  made = make_functions(config)
  shardings = state_shardings(mesh, made.network, made.optimizer)
  init = jax.jit(made.init, out_shardings=shardings, donate_argnums=1)
  return compile_functions(made, init, shardings, NamedSharding(mesh, PartitionSpec()))


def compile_functions(made: Functions, init: Any, shardings: Any, metrics: Any) -> Trainer:
  """Jits everything but `init`, with the state laid out as `shardings` and what is measured as
  `metrics`."""
  def compiled(run: Any) -> Any:
    return jax.jit(run, out_shardings=metrics)

  def step(run: Any) -> Any:
    # Without pinned outputs the second call would compile a second executable.
    return jax.jit(run, donate_argnums=0, out_shardings=(shardings, metrics))

  plain = step(made.plain)
  return Trainer(
      made.network, shardings, init, plain,
      plain if made.measured is made.plain else step(made.measured), compiled(made.evaluate),
      compiled(made.add), compiled(made.finish),
      {name: compiled(run) for name, run in made.apart.items()}, compiled(made.change),
      compiled(made.quantised),
      jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings["params"]))


def _joined(*telemetry: Any) -> Any:
  """site -> metric -> values, of several such."""
  found: dict[str, Any] = {}
  for part in telemetry:
    for site, metrics in part.items():
      found.setdefault(site, {}).update(metrics)
  return found
