"""The compiled train step and evaluation step, each with telemetry or without.

A step is a pure function of (state, batch): the telemetry of a measured step leaves through
statistics that no gradient sees, so both forms train the same parameters bit for bit.

Running statistics (role `running`) have their new value in place of a gradient. They bypass the
optimiser, the clipping and the gradient norm, and are averaged over micro-batches.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from of_jax.config import Config
from of_jax.models.functional import Network, build_network
from of_jax.optim import build_optimizer, lay_out, learning_rate_schedule, scale_init
from of_jax.optim.measure import measure_step
from of_jax.telemetry.observe import SiteStatistics, Telemetry, merge_sites
from of_jax.train.loss import Sums, cross_entropy, squared_error
from of_jax.train.sharding import state_shardings

State = dict[str, Any]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Trainer:
  """What a config trains: pure functions, jitted once.

  `step` and `step_measured` map (state, batch, key) to (state, metrics), where metrics holds
  float32 `loss`, `learning_rate`, `grad_norm`, for images `accuracy`, and, measured, `telemetry`:
  site -> metric -> [layers], and where the config asks for it `optimizer`: role -> metric ->
  [layers]. They consume the state they are given. `evaluate` maps (params, batch) to sums that
  `add` combines and `finish` turns into metrics.
  """

  network: Network
  shardings: State
  init: Any
  step: Any
  step_measured: Any
  evaluate: Any
  add: Any
  finish: Any


@functools.lru_cache(maxsize=4)
def make_trainer(config: Config, mesh: Mesh) -> Trainer:
  """Compiles nothing yet: every function compiles at its first call.

  Args:
    config: resolved.
    mesh: as `of_jax.train.sharding.make_mesh` gives it; it must be set (`jax.set_mesh`) wherever
      the functions are called.
  """
  network = build_network(config)
  schedule = learning_rate_schedule(config.optim, config.train.steps)
  layout_of = [network.trained(tree) for tree in (network.roles, network.axes, network.shapes)]
  optimizer = build_optimizer(config.optim, schedule, *layout_of)
  layout = lay_out(config.optim, *layout_of)
  telemetry = Telemetry.at_level(config.telemetry.level)
  shardings = state_shardings(mesh, network, optimizer)
  replicated = NamedSharding(mesh, PartitionSpec())
  micro_batches = config.train.grad_accumulation
  tokens = config.train.batch_size * config.train.sequence_length

  def init(key: jax.Array) -> State:
    params = network.init(key)
    trained = scale_init(config.optim, network.trained(params), *layout_of[:2])
    return {"params": network.joined(trained, network.running(params)),
            "opt_state": optimizer.init(trained), "step": jnp.int32(0)}

  def sums(params: Any, batch: Batch, key: jax.Array | None, watched: Telemetry | None,
           training: bool) -> tuple[jax.Array, tuple[Sums, SiteStatistics]]:
    observe = watched.observer(batch["weights"]) if watched else None
    x_BxTxD, table_DxV, statistics = network.stream(
        params, batch["inputs"], batch.get("documents"), dropout_key=key, observe=observe,
        training=training)
    targets, weights = batch["targets"], batch["weights"]
    objective, parts = (
        squared_error(x_BxTxD, table_DxV, targets, weights)
        if config.model.kind == "residual_mlp" else
        cross_entropy(x_BxTxD, table_DxV, targets, weights, config.train.z_loss,
                      config.model.logit_cap))
    return objective, (parts, statistics)

  def loss(params: Any, batch: Batch, key: jax.Array | None, watched: Telemetry | None
           ) -> tuple[jax.Array, tuple[Sums, SiteStatistics]]:
    objective, (parts, statistics) = sums(params, batch, key, watched, training=True)
    means = {name: part / tokens for name, part in parts.items() if name != "count"}
    return objective / tokens, (means, statistics)

  gradient = jax.grad(loss, has_aux=True)

  def accumulated(params: Any, batch: Batch, key: jax.Array | None, watched: Telemetry | None
                  ) -> Any:
    """Gradients, loss and statistics of the whole batch, a micro-batch at a time."""
    if micro_batches == 1:
      return gradient(params, batch, key, watched)
    # Row r goes to micro-batch r % micro_batches, so that a device's rows stay on the device.
    split = jax.tree.map(
        lambda rows: rows.reshape(-1, micro_batches, *rows.shape[1:]).swapaxes(0, 1), batch)
    keys = None if key is None else jax.random.split(key, micro_batches)
    first, rest = jax.tree.map(lambda x: x[0], (split, keys)), jax.tree.map(
        lambda x: x[1:], (split, keys))

    def add(total: Any, part: Any) -> tuple[Any, None]:
      grads, (means, statistics) = gradient(params, *part, watched)
      total_grads, (total_means, total_statistics) = total
      return (jax.tree.map(jnp.add, total_grads, grads),
              (jax.tree.map(jnp.add, total_means, means),
               merge_sites(total_statistics, statistics))), None

    return jax.lax.scan(add, gradient(params, *first, watched), rest)[0]

  def step(watched: Telemetry | None) -> Any:
    def run(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, Any]]:
      dropout_key = jax.random.fold_in(key, state["step"]) if config.model.dropout else None
      grads, (means, statistics) = accumulated(state["params"], batch, dropout_key, watched)
      # An average over micro-batches, where gradients add up: the loss is over the whole batch.
      running = jax.tree.map(lambda new: new / micro_batches, network.running(grads))
      grads, params = network.trained(grads), network.trained(state["params"])
      updates, opt_state = optimizer.update(grads, state["opt_state"], params)
      metrics = {**means, "learning_rate": schedule(state["step"]),
                 "grad_norm": optax.tree.norm(grads)}
      if watched:
        metrics["telemetry"] = watched.finish(statistics)
      if watched and config.telemetry.optimizer:
        metrics["optimizer"] = measure_step(
            layout, params, updates, opt_state, metrics["learning_rate"])
      params = network.joined(optax.apply_updates(params, updates), running)
      return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    # Without pinned outputs the second call would compile a second executable.
    return jax.jit(run, donate_argnums=0, out_shardings=(shardings, replicated))

  def evaluate(params: Any, batch: Batch) -> Any:
    return sums(params, batch, None, telemetry, training=False)[1]

  def add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a[0], b[0]), merge_sites(a[1], b[1])

  def finish(total: Any) -> dict[str, Any]:
    totals, statistics = total
    means = {name: total / totals["count"] for name, total in totals.items() if name != "count"}
    return {**means, "telemetry": telemetry.finish(statistics)}

  plain = step(None)
  return Trainer(
      network, shardings, jax.jit(init, out_shardings=shardings), plain,
      step(telemetry) if telemetry.sites else plain,
      jax.jit(evaluate, out_shardings=replicated), jax.jit(add, out_shardings=replicated),
      jax.jit(finish, out_shardings=replicated))
