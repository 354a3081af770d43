"""The metrics that a config may name, read off their families' files without importing jax.

A family is a file of of_jax/telemetry/families. It declares in constants what people and configs
need to know of it, and its class computes:

  METRICS: id -> (level, formula, unit, range, reference)
  KIND: what the family is given, see KINDS
  SITES: the sites that it is for; empty for all that a level watches
  EVERY: steps between measurements, for a family that is measured apart from the train step,
    by a program of its own; 0 for those inside the step
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from of_jax import variants

if TYPE_CHECKING:
  from of_jax.config import TelemetryConfig

Check = Callable[[bool, str, str], None]

FOLDER = "telemetry/families"
NO_FIRST = "_no_first"
# Of a site's activations, of their gradients, of attention's queries and keys, of the activations
# before and after a step, of parameters and their updates.
KINDS = ("activations", "gradients", "attention", "change", "parameters")
LEVELS = ("off", "basic", "full")
# Attention is measured where it happens and belongs to no one site.
ATTENTION = "attention"
# Site -> the level from which on it is watched.
SITES = {"resid_pre": "basic", "resid_mid": "full", "attn_in": "full", "attn_out": "full",
         "mlp_in": "full", "mlp_hidden": "full", "mlp_out": "full", "attn_q": "full",
         "attn_k": "full", "final": "basic"}


@dataclasses.dataclass(frozen=True)
class Metric:
  """One metric, for people.

  Attributes:
    id: the public name. If `has_no_first`, there is also `ID_no_first`, without position 0.
    family: the file that computes it.
    level: the lowest that measures it, unless a config names it.
    formula, unit, range, reference: X is tokens x width, s2_j the mean over tokens of X_tj^2.
  """

  id: str
  family: str
  level: str
  formula: str
  unit: str
  range: str
  reference: str
  has_no_first: bool


@dataclasses.dataclass(frozen=True)
class Declared:
  """What the file of a family declares."""

  name: str
  kind: str
  sites: tuple[str, ...]
  every: int
  metrics: tuple[Metric, ...]


@functools.cache
def families() -> dict[str, Declared]:
  """Every family of this package, by name."""
  found = {}
  for name in variants.names(FOLDER):
    kind, sites, every, metrics = (
        variants.literal(FOLDER, name, constant)
        for constant in ("KIND", "SITES", "EVERY", "METRICS"))
    found[name] = Declared(name, kind, tuple(sites), every, tuple(
        Metric(id_, name, *rest, has_no_first=kind == "activations")
        for id_, rest in metrics.items()))
  return found


@functools.cache
def metrics() -> dict[str, Metric]:
  """Every metric of this package, by id."""
  return {metric.id: metric for family in families().values() for metric in family.metrics}


@dataclasses.dataclass(frozen=True)
class Selection:
  """What a config measures.

  Attributes:
    ids: the metrics by their full names, `_no_first` included.
    sites: family -> sites, for the families of any of these metrics.
  """

  ids: frozenset[str]
  sites: dict[str, tuple[str, ...]]


def select(telemetry: "TelemetryConfig") -> Selection:
  """The metrics and sites of a valid config: the level's, unless it names its own."""
  if telemetry.level == "off":
    return Selection(frozenset(), {})
  below = LEVELS[:LEVELS.index(telemetry.level) + 1]
  named = set(telemetry.metrics)
  ids, sites = set(), {}
  for family in families().values():
    wanted = [metric for metric in family.metrics
              if (named & set(names_of(metric)) if named else metric.level in below)]
    if not wanted:
      continue
    for metric in wanted:
      # The plain id brings its twin along, the twin's own does not bring the plain one.
      ids |= set(names_of(metric)) if not named or metric.id in named else {
          metric.id + NO_FIRST}
    level_sites = tuple(site for site, level in SITES.items() if level in below)
    if not telemetry.sites:
      chosen = family.sites or level_sites
    elif named or not family.sites:
      chosen = telemetry.sites
    else:
      chosen = tuple(site for site in family.sites if site in telemetry.sites)
    if family.kind == ATTENTION:
      chosen = (ATTENTION,)
    if chosen:
      sites[family.name] = chosen
  return Selection(frozenset(ids), sites)


def names_of(metric: Metric) -> tuple[str, ...]:
  """A metric's id, and that of its twin without position 0."""
  return (metric.id, metric.id + NO_FIRST) if metric.has_no_first else (metric.id,)
