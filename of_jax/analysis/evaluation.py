"""Measurements of a model on batches. Enters: anything with a config and parameters, batches.
Leaves: loss, perplexity, telemetry; or what an observer of one's own keeps.

Everything runs on one device, whatever mesh trained the model.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from of_jax.analysis.interventions import Intervention, References, apply, check
from of_jax.config import Config, TelemetryConfig, declared_metrics
from of_jax.errors import UserError
from of_jax.models.functional import Network, Parameters, build_network
from of_jax.models.probe import SITES, Observer, Statistics
from of_jax.objectives.tasks import task_of
from of_jax.telemetry.observe import Telemetry

Batch = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]
Level = Literal["off", "basic", "full"]


class Model(Protocol):
  """Anything that can be measured: a restored checkpoint, or weights from elsewhere."""

  @property
  def config(self) -> Config:
    """The model's config, resolved."""

  @property
  def params(self) -> Parameters:
    """The parameters of the network that the config builds."""


@dataclasses.dataclass(frozen=True)
class Replayed:
  """A batch with what a training step does to it, so that its numbers can be computed again."""

  batch: Batch
  dropout_key: jax.Array | None


def measured(batch: Mapping[str, Any]) -> Any:
  """Weights [batch, time] of the tokens whose activations are measured: 0 for padding, else 1.

  `weights` are those of the predictions. The two differ where a token is not followed by another,
  as the last one of a window that was given by itself; such a batch has `measured` too.
  """
  return batch.get("measured", batch["weights"])


def filled_rows(batch: Batch) -> Batch:
  """Drops the rows that only fill a batch, where something is measured that knows no weights."""
  filled = measured(batch).any(1)
  return batch if filled.all() else {name: rows[filled] for name, rows in batch.items()}


@functools.lru_cache(maxsize=8)
def network_of(config: Config) -> Network:
  """Builds the network of a config, once."""
  return build_network(config)


def logits(model: Model, inputs: npt.NDArray[Any]) -> jax.Array:
  """Computes logits, float32 [batch, time, vocabulary] of tokens [batch, time], or of images
  [batch, 1, pixels]."""
  result: jax.Array = _logits(model.config)(model.params, jnp.asarray(inputs))
  return result


@functools.lru_cache(maxsize=8)
def _logits(config: Config) -> Any:
  return jax.jit(lambda params, inputs: network_of(config).apply(params, inputs)[0])


def measure(model: Model, batches: Iterable[Batch | Replayed], sites: Sequence[str] = (),
            metrics: Sequence[str] = (), user_metrics: Sequence[str] = (),
            interventions: Sequence[Intervention] = (), references: References = (),
            level: Level = "full") -> dict[str, Any]:
  """Measures loss and telemetry over all batches together, weighted by tokens.

  Activations are those of every token that was given, the loss is of those that another follows.

  Args:
    model: see Model.
    batches: as of_jax.data.loader makes them. A `Replayed` one is read as in training: with
      dropout, and with batch statistics in norms that have them.
    sites: where to measure; default everywhere that the level watches.
    metrics: ids; default all of the level that a forward pass is enough for.
    user_metrics: FILE.py:NAME each, measured beside them.
    interventions: what to change on the way, in order; see of_jax.analysis.interventions.
    references: what they need, as `references` returns it; one for each.
    level: basic or full, as telemetry.level, for what is not named.

  Returns:
    `loss` in nats a token (images: squared error), `perplexity` (images: `accuracy`),
    `num_tokens`, how many predictions, `num_tokens_measured`, how many tokens' activations, and
    `telemetry`: site -> metric -> [layers].
  """
  watched = watch(model.config, sites, metrics, user_metrics, level)
  run = _evaluator(model.config, watched, tuple(interventions))
  totals: dict[str, float] = {}
  statistics: Any = None
  tokens = 0.0
  for batch in batches:
    replayed = isinstance(batch, Replayed)
    rows, key = (batch.batch, batch.dropout_key) if isinstance(batch, Replayed) else (batch, None)
    parts, collected = run(model.params, dict(rows), key, tuple(references), replayed)
    for name, value in parts.items():
      totals[name] = totals.get(name, 0.0) + float(value)
    tokens += float(np.sum(measured(rows)))
    statistics = collected if statistics is None else watched.merge(statistics, collected)
  assert totals, "no batch"
  loss = totals["loss"] / totals["count"]
  more = ({"accuracy": totals["accuracy"] / totals["count"]} if "accuracy" in totals
          else {"perplexity": math.exp(loss) if loss < 700 else math.inf})
  return {"loss": loss, **more, "num_tokens": round(totals["count"]),
          "num_tokens_measured": round(tokens),
          "telemetry": jax.device_get(watched.finish(statistics))}


def watch(config: Config, sites: Sequence[str] = (), metrics: Sequence[str] = (),
          user_metrics: Sequence[str] = (), level: Level = "full") -> Telemetry:
  """Plans to watch what a forward pass is enough for: families of activations and of attention.

  Args:
    config: of the model.
    sites, metrics, user_metrics: as in config.telemetry; the first two empty for all that the level
      has.
    level: as telemetry.level.
  """
  selection = declared_metrics.select(
      TelemetryConfig(level=level, sites=tuple(sites), metrics=tuple(metrics),
                      user_metrics=tuple(user_metrics)), config.model.kind)
  chosen = {name: where for name, where in selection.sites.items()
            if selection.families[name].kind in declared_metrics.OF_FORWARD}
  return Telemetry(tuple((site, tuple(name for name, where in chosen.items() if site in where))
                         for site in declared_metrics.ordered_sites(chosen)), selection.ids)


@functools.lru_cache(maxsize=16)
def _evaluator(config: Config, telemetry: Telemetry, interventions: tuple[Intervention, ...]
               ) -> Any:
  network, task = network_of(config), task_of(config.model.kind)

  @functools.partial(jax.jit, static_argnums=4)
  def run(params: Parameters, batch: Mapping[str, jax.Array], key: jax.Array | None,
          references: References, training: bool) -> Any:
    x_BxTxD, table_DxV, statistics = network.stream(
        params, batch["inputs"], batch.get("documents"), dropout_key=key,
        observe=telemetry.observer(measured(batch)), training=training,
        intervene=apply(interventions, references) if interventions else None)
    return task.objective(config, x_BxTxD, table_DxV, batch, z_loss=0.0)[1], statistics

  return run


def observed(model: Model, batches: Iterable[Batch], make_observer: "MakeObserver"
             ) -> Iterator[tuple[Batch, dict[str, dict[str, npt.NDArray[Any]]]]]:
  """Yields each batch with what an observer kept of it: site -> name -> [layers, ...].

  Args:
    make_observer: hashable, so that what is compiled for it is kept: weights [batch, time] of
      the batch's tokens, see `measured` -> observer.
  """
  hashable: Any = make_observer
  run = _observing(model.config, hashable)
  for batch in batches:
    yield batch, jax.device_get(run(model.params, dict(batch)))


class MakeObserver(Protocol):
  """A function that makes the observer of one batch from its tokens' weights, see `observed`."""

  def __call__(self, weights_BxT: jax.Array) -> Observer:
    ...


@functools.lru_cache(maxsize=16)
def _observing(config: Config, make_observer: Any) -> Any:
  network = network_of(config)

  @jax.jit
  def run(params: Parameters, batch: Mapping[str, jax.Array]) -> dict[str, Statistics]:
    return network.stream(params, batch["inputs"], batch.get("documents"),
                          observe=make_observer(measured(batch)))[2]

  return run


@dataclasses.dataclass(frozen=True)
class _Moments:
  """Sums over tokens of x and x^2 at one site."""

  site: str

  def __call__(self, weights_BxT: jax.Array) -> Observer:
    def observe(site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None
                ) -> Statistics | None:
      del first_BxT
      if site != self.site:
        return None
      x = x_BxTxD.astype(jnp.float32)
      return {"sum": jnp.einsum("bt,btd->d", weights_BxT, x),
              "sum_square": jnp.einsum("bt,btd->d", weights_BxT, jnp.square(x))}

    return observe


def neuron_moments(model: Model, batches: Iterable[Batch], site: str) -> tuple[Floats, Floats]:
  """Averages each neuron and its square at `site` over all tokens: two float64 [layers, width]."""
  count = 0.0
  total: Any = 0.0
  total_square: Any = 0.0
  for batch, kept in observed(model, batches, _Moments(site)):
    count += float(measured(batch).sum())
    total = total + np.asarray(kept[site]["sum"], np.float64)
    total_square = total_square + np.asarray(kept[site]["sum_square"], np.float64)
  return np.asarray(total / count), np.asarray(total_square / count)


def top_neurons(model: Model, batches: Iterable[Batch], site: str, layer: int, count: int
                ) -> tuple[int, ...]:
  """Finds the neurons of largest mean square at one site and layer, largest first."""
  _, mean_square_LxD = neuron_moments(model, batches, site)
  order = np.argsort(-mean_square_LxD[layer], kind="stable")
  return tuple(int(neuron) for neuron in order[:count])


def references(model: Model, batches: Iterable[Batch], interventions: Sequence[Intervention]
               ) -> References:
  """Computes what `measure` needs beside interventions: means of neurons that nothing has changed.

  Raises:
    UserError: a layer or a neuron that the model does not have.
  """
  shapes = _site_shapes(model.config)
  batches, found = list(batches), []
  for one in interventions:
    if one.site not in shapes:
      raise UserError(f"intervention {one.kind} at {one.site}: this model has no such site; there "
                      f"are {', '.join(shapes)}")
    check(one, *shapes[one.site])
    found.append(neuron_moments(model, batches, one.site)[0][:, list(one.neurons)]
                 .astype(np.float32) if one.kind == "mean" else None)
  return found


def fill_top(model: Model, batches: Iterable[Batch], one: Intervention) -> Intervention:
  """Replaces `topN` of an intervention by the neurons it stands for, see interventions.parse."""
  if not one.neurons or one.neurons[0] >= 0:
    return one
  shapes = _site_shapes(model.config)
  assert one.layer is not None
  layers, width = shapes.get(one.site, (0, 0))
  check(dataclasses.replace(one, neurons=tuple(range(len(one.neurons)))), layers, width)
  return dataclasses.replace(one, neurons=top_neurons(
      model, batches, one.site, one.layer, len(one.neurons)))


@functools.lru_cache(maxsize=8)
def _site_shapes(config: Config) -> dict[str, tuple[int, int]]:
  """site -> (layers, neurons), by tracing the network."""
  network, inputs = network_of(config), task_of(config.model.kind).inputs(config, (1, 1))

  def observe(site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None) -> Statistics | None:
    del first_BxT
    return {"token": x_BxTxD[0, 0]} if site in SITES else None

  kept = jax.eval_shape(lambda params, x: network.stream(params, x, observe=observe)[2],
                        network.shapes, inputs)
  return {site: tuple(kept[site]["token"].shape) for site in SITES if site in kept}
