"""What a run watches: the observer that a model's probes call, and the metrics it ends in."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from of_jax.config import TelemetryConfig, declared_metrics
from of_jax.telemetry import registry
from of_jax.telemetry.activations import Activations, first_of_rows
from of_jax.telemetry.families import attention
from of_jax.telemetry.families.attention import Weigh
from of_jax.telemetry.family import finish_all
from of_jax.telemetry.one_pass import read
from of_jax.xla import placement

# site -> family -> statistics.
SiteStatistics = Mapping[str, Mapping[str, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Telemetry:
  """What is watched, and where. Hashable, so that it may be static under jit.

  Attributes:
    plan: (site, the families measured there), in the order of the forward pass.
    ids: the metrics that are kept, `_no_first` included; None for all.
  """

  plan: tuple[tuple[str, tuple[str, ...]], ...]
  ids: frozenset[str] | None = None

  @classmethod
  def of(cls, config: TelemetryConfig, model_kind: str = "transformer",
         kind: str = "activations", apart: str = "") -> "Telemetry":
    """What a resolved config watches inside the train step.

    Args:
      config: resolved.
      model_kind: `model.kind`, which has the sites.
      kind: of the families, see of_jax.config.declared_metrics.KINDS.
      apart: this one family instead, which is measured apart from the step.
    """
    selection = declared_metrics.select(config, model_kind)
    chosen = {name: sites for name, sites in selection.sites.items()
              if (name == apart if apart else selection.families[name].kind == kind
                  and not selection.families[name].every)}
    order = (*declared_metrics.SITES, declared_metrics.ATTENTION)
    plan = ((site, tuple(name for name, sites in chosen.items() if site in sites))
            for site in order)
    return cls(tuple((site, names) for site, names in plan if names), selection.ids)

  @classmethod
  def at_level(cls, level: Literal["off", "basic", "full"], model_kind: str = "transformer"
               ) -> "Telemetry":
    """What `telemetry.level` alone asks for of activations inside the train step."""
    return cls.of(TelemetryConfig(level=level), model_kind)

  @property
  def sites(self) -> tuple[str, ...]:
    """The sites that are watched."""
    return tuple(site for site, _ in self.plan)

  def observer(self, weights_BxT: jax.Array | None = None) -> "Observer":
    """What to pass as a model's `observe`; tokens of weight 0 are left out."""
    return Observer(dict(self.plan), weights_BxT)

  def merge(self, a: SiteStatistics, b: SiteStatistics) -> dict[str, Any]:
    """The statistics of both batches together."""
    return {site: {name: registry.load(name).merge(dict(a[site][name]), dict(b[site][name]))
                   for name in names} for site, names in self.plan}

  def finish(self, statistics: SiteStatistics) -> dict[str, dict[str, jax.Array]]:
    """site -> metric -> one value a layer, or one list a layer."""
    # Sites whose statistics have the same shapes are finished side by side, by one program; not on
    # a mesh, where the partitioner, given a stack of what is split and what is not, computes
    # another function: its loss was 10.83 and not 10.17, with micro-batches on (2, 2, 2).
    is_split = placement.devices() > 1
    alike: dict[tuple[str, str], list[str]] = {}
    for site, names in self.plan:
      for name in names:
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), dict(statistics[site][name]))
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
  """What a model's probes call: families of activations at their sites, and those of attention."""

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
    """The statistics of one layer's attention, see of_jax.models.probe.OfAttention."""
    names = self.families.get(declared_metrics.ATTENTION, ())
    first_BxT = first_of_rows(first_BxT, q_BxTxHxK.shape[:2])
    counts_BxT = jnp.ones(first_BxT.shape, bool) if self.weights_BxT is None else (
        self.weights_BxT > 0)
    return {name: attention.statistics(q_BxTxHxK, k_BxSxGxK, weigh, first_BxT, counts_BxT)
            for name in names} or None


class ChangeObserver:
  """Under `jax.vmap` over parameters before and after a step: the families of what it changed.

  Both forward passes run side by side, so that no activation is kept.
  """

  AXIS = "before_and_after"

  def __init__(self, telemetry: Telemetry, weights_BxT: jax.Array | None = None):
    self._families, self._weights_BxT = dict(telemetry.plan), weights_BxT

  def __call__(self, site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None
               ) -> dict[str, Any] | None:
    if site not in self._families:
      return None
    before, after = (Activations(x, first_BxT, self._weights_BxT)
                     for x in jax.lax.all_gather(x_BxTxD, self.AXIS))
    return {name: registry.load(name).of_change(before, after) for name in self._families[site]}


# One site by itself, with every family that an array of activations is enough for.
_ARRAY = "array"


def array_telemetry() -> Telemetry:
  """What `measure` measures, for statistics that are to be merged before they are finished."""
  return Telemetry(((_ARRAY, registry.of_activations()),))


def measure(x_BxTxD: jax.Array) -> dict[str, jax.Array]:
  """Every activation metric of one array.

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
