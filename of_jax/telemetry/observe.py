"""What a run watches: the observer that a model's probes call, and the metrics it ends in."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from of_jax.telemetry.metrics import finish
from of_jax.telemetry.statistics import Statistics, merge, sufficient_statistics

# Level -> the sites that are watched.
LEVELS: dict[str, tuple[str, ...]] = {"off": (), "basic": ("resid_pre", "final")}

SiteStatistics = Mapping[str, Statistics]


@dataclasses.dataclass(frozen=True)
class Telemetry:
  """The sites of a level, watched. Hashable, so that it may be static under jit."""

  sites: tuple[str, ...]

  @classmethod
  def at_level(cls, level: str) -> "Telemetry":
    """Raises KeyError on a level that LEVELS lacks."""
    return cls(LEVELS[level])

  def observer(self, weights_BxT: jax.Array | None = None) -> "_Observer":
    """What to pass as a model's `observe`; tokens of weight 0 are left out."""
    return _Observer(self.sites, weights_BxT)

  def finish(self, statistics: SiteStatistics) -> dict[str, dict[str, jax.Array]]:
    """site -> metric -> one value a layer."""
    return {site: finish(dict(statistics[site])) for site in self.sites}


@dataclasses.dataclass(frozen=True)
class _Observer:
  sites: tuple[str, ...]
  weights_BxT: jax.Array | None

  def __call__(self, site: str, x_BxTxD: jax.Array, first_BxT: jax.Array) -> Statistics | None:
    if site not in self.sites:
      return None
    return sufficient_statistics(x_BxTxD, first_BxT, self.weights_BxT)


def merge_sites(a: SiteStatistics, b: SiteStatistics) -> dict[str, Statistics]:
  """The statistics of both batches together, site by site."""
  return {site: merge(a[site], b[site]) for site in a}


def measure(x_BxTxD: jax.Array) -> dict[str, jax.Array]:
  """Every activation metric of one array.

  Args:
    x_BxTxD: activations [batch, time, width], of any real type; position 0 of the time axis is
      what `_no_first` leaves out.

  Returns:
    id -> float32 scalar, NaN where undefined. See of_jax.telemetry.METRICS for the formulas.

  Raises:
    ValueError: the array does not have three axes.
  """
  x_BxTxD = jnp.asarray(x_BxTxD)
  if x_BxTxD.ndim != 3:
    raise ValueError(f"measure wants [batch, time, width], not the shape {x_BxTxD.shape}")
  first_BxT = jnp.broadcast_to(jnp.arange(x_BxTxD.shape[1]) == 0, x_BxTxD.shape[:2])
  return finish(sufficient_statistics(x_BxTxD, first_BxT))
