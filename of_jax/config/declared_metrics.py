"""Metrics that a config may measure, read off their families' files without importing jax.

A family is a file of of_jax/telemetry/families. It declares in constants what people and configs
need to know of it, and its class computes:

  METRICS: id -> (level, formula, unit, range, reference)
  KIND: what the family is given, see KINDS, and so which method its class has
  SITES: the sites that it is for; empty for all that a level watches
  EVERY: steps between measurements, for a family that is measured apart from the train step,
    by a program of its own; 0 for those inside the step

What the optimiser does is declared in the same form in of_jax/optim/measure.py, what quantisation
would cost in of_jax/quantise/in_training.py, which a field of its own asks for. A user's own metric
is a function or class in a file of theirs, see of_jax.telemetry.user.
"""

import ast
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax import variants
from of_jax.config import paths
from of_jax.config.kinds import kind_of
from of_jax.config.sections import TelemetryConfig
from of_jax.errors import UserError, nearest, refusing

FOLDER = "telemetry/families"
NO_FIRST = "_no_first"
_LARGEST_SOURCE = 10_000_000
OPTIMIZER = "optimizer"
QUANTISED = "quantised"
# Kind -> what its families are given, and the method of of_jax.telemetry.Family that takes it. How
# a family of it is measured apart from the step, of_jax.train.kinds.BUILDERS says.
KINDS = {
    "activations": "a site's activations: `statistics`",
    "gradients": "by neuron, sums of squares of the loss's gradients with respect to a site's "
    "activations: `of_gradients`",
    "attention": "a layer's queries and keys: `of_attention`",
    "change": "a site's activations of a fixed batch before and after a step, always apart from "
    "it: `of_change`",
    "parameters": "parameters, and what the optimiser does with them, always in the step",
    QUANTISED: "the model quantised, on a fixed batch after a step",
}
# What one forward pass is enough for.
OF_FORWARD = ("activations", "attention")
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


def names_of(metric: Metric) -> tuple[str, ...]:
  """A metric's id, and that of its twin without position 0."""
  return (metric.id, metric.id + NO_FIRST) if metric.has_no_first else (metric.id,)


@dataclasses.dataclass(frozen=True)
class Declared:
  """Declaration of a family of metrics, read off its file."""

  name: str
  kind: str
  sites: tuple[str, ...]
  every: int
  metrics: tuple[Metric, ...]


@functools.cache
def families() -> dict[str, Declared]:
  """Every family of this package, by name."""
  found = {name: _declared(name, FOLDER, name) for name in variants.names(FOLDER)}
  return {**found, OPTIMIZER: _declared(OPTIMIZER, "optim", "measure"),
          QUANTISED: _declared(QUANTISED, "quantise", "in_training")}


def _declared(name: str, folder: str, file: str) -> Declared:
  kind, sites, every, metrics = (variants.literal(folder, file, constant)
                                 for constant in ("KIND", "SITES", "EVERY", "METRICS"))
  if kind not in KINDS:
    raise variants.fault(folder, file, "KIND", f'is "{kind}", not one of {", ".join(KINDS)}'
                         + nearest(kind, KINDS))
  if kind == "change" and not every:
    raise variants.fault(folder, file, "EVERY", "is 0, and a family of kind change is measured "
                         "apart from the step; say every how many")
  rows = metrics.items() if isinstance(metrics, dict) else (("", metrics),)
  for id_, row in rows:
    is_row = isinstance(row, tuple) and len(row) == 5
    if not (is_row and (kind == QUANTISED or row[0] in LEVELS[1:])):
      raise variants.fault(folder, file, "METRICS", f"has {id_ or 'no rows'}, which is not "
                           '"id": ("basic" or "full", formula, unit, range, reference)')
  return Declared(name, kind, tuple(sites), every, tuple(
      _metric(id_, name, row, kind == "activations") for id_, row in rows))


def _metric(id_: str, family: str, row: Sequence[str], has_no_first: bool) -> Metric:
  level, formula, unit, range_, reference = row
  return Metric(id_, family, level, formula, unit, range_, reference, has_no_first)


@functools.cache
def metrics() -> dict[str, Metric]:
  """Every metric of this package, by id."""
  return {metric.id: metric for family in families().values() for metric in family.metrics}


def model_sites(model_kind: str) -> tuple[str, ...]:
  """The sites of a network, in the order of its layers."""
  return kind_of(model_kind).sites


def ordered_sites(chosen: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
  """Orders the sites of some families: those of the layers, variants' own, attention."""
  found = dict.fromkeys(site for sites in chosen.values() for site in sites)
  own = (site for site in found if site not in SITES and site != ATTENTION)
  return tuple(site for site in (*SITES, *own, ATTENTION) if site in found)


@dataclasses.dataclass(frozen=True)
class Selection:
  """Metrics that a config measures, and their families and sites.

  Attributes:
    ids: the metrics by their full names, `_no_first` included.
    sites: family -> sites, for the families of any of these metrics.
    families: those of the package and the user's.
  """

  ids: frozenset[str]
  sites: Mapping[str, tuple[str, ...]]
  families: Mapping[str, Declared]


@functools.lru_cache(maxsize=16)
def select(telemetry: TelemetryConfig, model_kind: str) -> Selection:
  """The metrics and sites of a valid config: the level's, unless it names its own.

  Raises:
    UserError: a user's metric that cannot be read.
  """
  own = {text: user_family(text) for text in telemetry.user_metrics}
  known = {**families(), **own}
  if telemetry.level == "off":
    return Selection(frozenset(), {}, known)
  below = LEVELS[:LEVELS.index(telemetry.level) + 1]
  present = model_sites(model_kind)
  named = set(telemetry.metrics)
  ids: set[str] = set()
  sites = {}
  for name, family in known.items():
    chosen = _chosen_sites(telemetry, family, [
        site for site in present if SITES.get(site, "full") in below], present)
    if family.kind == QUANTISED:
      if telemetry.quantised_perplexity_every:
        ids |= {metric.id for metric in family.metrics}
        sites[name] = family.sites
      continue
    if family.kind == ATTENTION:
      chosen = (ATTENTION,) if kind_of(model_kind).has_attention else ()
    is_own, found = name in own, set()
    for metric in family.metrics:
      if is_own or (metric.id in named if named else metric.level in below):
        found |= set(names_of(metric))
      found |= named & set(names_of(metric))
    if name == OPTIMIZER and telemetry.optimizer and not found:
      found = {metric.id for metric in family.metrics}
    if found and chosen:
      ids |= found
      sites[name] = chosen
  return Selection(frozenset(ids), sites, known)


def _chosen_sites(telemetry: TelemetryConfig, family: Declared, of_level: list[str],
                  present: tuple[str, ...]) -> tuple[str, ...]:
  if family.kind == "parameters":
    return (OPTIMIZER,)
  if not telemetry.sites:
    return tuple(site for site in family.sites if site in present) or tuple(of_level)
  is_named = any(set(telemetry.metrics) & set(names_of(metric)) for metric in family.metrics)
  return tuple(site for site in telemetry.sites
               if (is_named or not family.sites or site in family.sites)
               and (family.kind != "gradients" or site in SITES))


def cadences(telemetry: TelemetryConfig, model_kind: str) -> dict[str, int]:
  """Family -> steps between measurements, for those measured apart from the step; 0 is never."""
  selection = select(telemetry, model_kind)
  asked = dict(text.split("=") for text in telemetry.cadences)
  found = {name: int(asked.get(name, selection.families[name].every))
           for name in selection.sites if selection.families[name].every}
  return {**found, QUANTISED: telemetry.quantised_perplexity_every}


def user_family(text: str) -> Declared:
  """Reads the declaration of PATH.py:NAME, without running the file.

  A function is one metric of its name, whose formula is the first line of its docstring; a class
  states `metrics`, id -> (formula, unit, range, reference).

  Raises:
    UserError: no such file or name in it, or a class without metrics.
  """
  path, _, name = text.rpartition(":")
  where = f"config.telemetry.user_metrics={text}"
  if not path.endswith(".py") or not name.isidentifier():
    raise UserError(f"{where}: not of the form FILE.py:NAME")
  file = paths.expanded(path, where)
  if not file.exists():
    raise UserError(f"{where}: no such file as {path}")
  if paths.check_file(where, file).stat().st_size > _LARGEST_SOURCE:
    raise UserError(f"{where}: {path} has more than {_LARGEST_SOURCE:,} bytes")
  with refusing(where, f"{path} is not Python"):
    tree = ast.parse(file.read_bytes())
  defined = {node.name: node for node in tree.body
             if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
  if name not in defined:
    raise UserError(f"{where}: {path} defines no function or class {name}"
                    + nearest(name, defined))
  node = defined[name]
  if isinstance(node, ast.FunctionDef):
    formula = (ast.get_docstring(node) or name).splitlines()[0]
    rows: dict[str, Any] = {name: (formula, "", "", path)}
  else:
    try:
      rows = next(ast.literal_eval(part.value) for part in node.body
                  if isinstance(part, (ast.Assign, ast.AnnAssign)) and part.value is not None
                  and ast.unparse(part).partition("=")[0].partition(":")[0].strip() == "metrics")
      rows = {id_: (*map(str, row),) for id_, row in rows.items()}
      is_right = bool(rows) and all(len(row) == 4 for row in rows.values())
    except (StopIteration, ValueError, AttributeError, TypeError):
      is_right = False
    if not is_right:
      raise UserError(f"{where}: the class does not state metrics = "
                      '{"id": ("formula", "unit", "range", "reference")}')
  return Declared(text, "activations", (), 0, tuple(
      _metric(id_, text, ("basic", *row), isinstance(node, ast.ClassDef))
      for id_, row in rows.items()))


def table() -> str:
  """Writes every metric as a Markdown table, as docs/metrics.md has it."""
  lines = ["| id | formula | unit | range | level | where | reference |",
           "| --- | --- | --- | --- | --- | --- | --- |"]
  for family in families().values():
    where = {"parameters": "by role and layer", ATTENTION: "each layer"}.get(
        family.kind, ", ".join(family.sites) or "all sites")
    every = f", every {family.every} steps" if family.every else ""
    for metric in family.metrics:
      cells = (f"`{metric.id}`", metric.formula, metric.unit, metric.range, metric.level + every,
               where, metric.reference)
      lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
  return "\n".join(lines)
