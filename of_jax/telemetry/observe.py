"""Telemetry of a forward pass: the observer that a model's probes call, and the metrics it ends in.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp

from of_jax.config import TelemetryConfig, declared_metrics
from of_jax.errors import UserError
from of_jax.telemetry import registry
from of_jax.telemetry.activations import Activations, first_of_rows
from of_jax.telemetry.family import Weigh, finish_all
from of_jax.telemetry.one_pass import read
from of_jax.xla import placement

# site -> family -> statistics.
SiteStatistics = Mapping[str, Mapping[str, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Telemetry:
  """Sites that are watched, with the families of each. Hashable, so that jit may take it as static.

  Attributes:
    plan: (site, the families measured there), in the order of the forward pass.
    ids: the metrics that are kept, `_no_first` included; None for all.
  """

  plan: tuple[tuple[str, tuple[str, ...]], ...]
  ids: frozenset[str] | None = None

  @classmethod
  def of(cls, config: TelemetryConfig, model_kind: str = "transformer",
         kinds: Collection[str] = declared_metrics.OF_FORWARD) -> Self:
    """Reads off a resolved config what it watches inside the train step.

    Args:
      config: resolved.
      model_kind: `model.kind`, which has the sites.
      kinds: of the families, see of_jax.config.declared_metrics.KINDS; default those that a forward
        pass is enough for.
    """
    families = declared_metrics.select(config, model_kind).families
    return cls._of(config, model_kind, lambda name: (
        families[name].kind in kinds and not families[name].every))

  @classmethod
  def apart(cls, config: TelemetryConfig, model_kind: str, name: str) -> Self:
    """Reads off a resolved config what it watches of one family, apart from the train step."""
    return cls._of(config, model_kind, lambda family: family == name)

  @classmethod
  def _of(cls, config: TelemetryConfig, model_kind: str, wanted: Callable[[str], bool]) -> Self:
    selection = declared_metrics.select(config, model_kind)
    chosen = {name: sites for name, sites in selection.sites.items() if wanted(name)}
    return cls(tuple((site, tuple(name for name, sites in chosen.items() if site in sites))
                     for site in declared_metrics.ordered_sites(chosen)), selection.ids)

  @classmethod
  def at_level(cls, level: Literal["off", "basic", "full"], model_kind: str = "transformer"
               ) -> "Telemetry":
    """Lists what `telemetry.level` alone asks for inside the train step."""
    return cls.of(TelemetryConfig(level=level), model_kind)

  @property
  def sites(self) -> tuple[str, ...]:
    """The sites that are watched."""
    return tuple(site for site, _ in self.plan)

  def observer(self, weights_BxT: jax.Array | None = None) -> "Observer":
    """Makes what to pass as a model's `observe`; tokens of weight 0 are left out."""
    return Observer(dict(self.plan), weights_BxT)

  def merge(self, a: SiteStatistics, b: SiteStatistics) -> dict[str, Any]:
    """Combines the statistics of two batches."""
    return {site: {name: registry.load(name).merge(dict(_met(a, site)[name]), dict(b[site][name]))
                   for name in names} for site, names in self.plan}

  def finish(self, statistics: SiteStatistics) -> dict[str, dict[str, jax.Array]]:
    """Makes metrics of statistics: site -> metric -> one value a layer, or one list a layer."""
    # Sites whose statistics have the same shapes are finished side by side, by one program; not on
    # a mesh, where the partitioner, given a stack of what is split and what is not, computes
    # another function: its loss was 10.83 and not 10.17, with micro-batches on (2, 2, 2).
    is_split = placement.devices() > 1
    alike: dict[tuple[str, str], list[str]] = {}
    for site, names in self.plan:
      for name in names:
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), dict(_met(statistics, site)[name]))
        alike.setdefault((name, site if is_split else str(shapes)), []).append(site)
    finished: dict[tuple[str, str], dict[str, jax.Array]] = {}
    for (name, _), sites in alike.items():
      finish = functools.partial(
          finish_all, registry.load(name),
          has_no_first=registry.declared(name).metrics[0].has_no_first)
      together = jax.vmap(finish)(jax.tree.map(
          lambda *parts: jnp.stack(parts), *(dict(statistics[site][name]) for site in sites)))
      for i, site in enumerate(sites):
        finished[site, name] = {id_: value[i] for id_, value in together.items()
                                if self.ids is None or id_ in self.ids}
    return {site: {id_: value for name in names for id_, value in finished[site, name].items()}
            for site, names in self.plan}


@dataclasses.dataclass(frozen=True)
class Observer:
  """Measures where a model's probes call: activations at their sites, and attention."""

  families: Mapping[str, tuple[str, ...]]
  weights_BxT: jax.Array | None = None

  def __call__(self, site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None
               ) -> dict[str, Any] | None:
    if site not in self.families:
      return None
    activations = read(x_BxTxD, first_BxT, self.weights_BxT)
    return {name: registry.load(name).statistics(activations) for name in self.families[site]}

  def of_attention(self, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, weigh: Weigh,
                   first_BxT: jax.Array | None) -> dict[str, Any] | None:
    """Measures one layer's attention, see of_jax.models.probe.OfAttention."""
    names = self.families.get(declared_metrics.ATTENTION, ())
    first_BxT = first_of_rows(first_BxT, q_BxTxHxK.shape[:2])
    counts_BxT = jnp.ones(first_BxT.shape, bool) if self.weights_BxT is None else (
        self.weights_BxT > 0)
    return {name: registry.load(name).of_attention(
        q_BxTxHxK, k_BxSxGxK, weigh, first_BxT, counts_BxT) for name in names} or None


def join_metrics(*parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Joins what was measured apart: site -> metric -> values."""
  found: dict[str, dict[str, Any]] = {}
  for part in parts:
    for site, metrics in part.items():
      found.setdefault(site, {}).update(metrics)
  return found


class ChangeObserver:
  """Measures what a step changed, under `jax.vmap` over the parameters before it and after it.

  Both forward passes run side by side, so that no activation is kept. All that a family computes
  of a site reads the same two arrays: the compiler would else compute them again for one reader or
  another, rounded in other places, and what rounding moves may be as large as a step.
  """

  AXIS = "before_and_after"

  def __init__(self, telemetry: Telemetry, weights_BxT: jax.Array | None = None):
    self._families, self._weights_BxT = dict(telemetry.plan), weights_BxT

  def __call__(self, site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None
               ) -> dict[str, Any] | None:
    if site not in self._families:
      return None
    before, after = (Activations(x, first_BxT, self._weights_BxT) for x in (
        jax.lax.optimization_barrier(jax.lax.all_gather(x_BxTxD, self.AXIS))))
    return {name: registry.load(name).of_change(before, after) for name in self._families[site]}


def _met(statistics: SiteStatistics, site: str) -> Mapping[str, dict[str, jax.Array]]:
  if site not in statistics:
    raise UserError(f"telemetry.sites: {site} is watched, but no module of this model sows it")
  return statistics[site]


# One site by itself, with every family that an array of activations is enough for.
_ARRAY = "array"


def array_telemetry() -> Telemetry:
  """Telemetry as `measure` has it, for statistics to be merged before they are finished."""
  return Telemetry(((_ARRAY, registry.of_activations()),))


def measure(x_BxTxD: jax.Array) -> dict[str, jax.Array]:
  """Measures every activation metric of one array.

  Args:
    x_BxTxD: activations [batch, time, width], of any real type; position 0 of the time axis is
      what `_no_first` leaves out.

  Returns:
    id -> float32 scalar, or a list for `top_neurons` and its like; NaN where undefined, the
    smallest int32 for an index. See of_jax.telemetry.METRICS for the formulas.

  Raises:
    ValueError: the array does not have three axes.
  """
  x_BxTxD = jnp.asarray(x_BxTxD)
  if x_BxTxD.ndim != 3:
    raise ValueError(f"measure wants [batch, time, width], not the shape {x_BxTxD.shape}")
  telemetry = array_telemetry()
  statistics = telemetry.observer()(_ARRAY, x_BxTxD, None)
  assert statistics is not None
  return telemetry.finish({_ARRAY: statistics})[_ARRAY]
