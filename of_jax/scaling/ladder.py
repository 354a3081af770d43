"""Ladders: runs of several sizes, of which the largest is forecast before it is trained.

Enters: a ladder as a study declares it, the runs of the smaller sizes. Leaves: the forecast of the
largest, and the band that its curve should stay in.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from of_jax.analysis.runs import Run
from of_jax.config import Config
from of_jax.errors import UserError, nearest
from of_jax.scaling import band
from of_jax.scaling import law as laws
from of_jax.scaling import targets, variables
from of_jax.scaling.analysis import Options, analyse
from of_jax.scaling.law import NAMED
from of_jax.scaling.targets import Target

LEAST_SIZES = 5
# Least squares: a ladder has too few points to tell outliers among them, and loses a third of them
# to nearly least absolute deviations.
_DELTA = math.inf


@dataclasses.dataclass(frozen=True)
class Ladder:
  """A series of runs that differ in size and seed; those of the largest size are held out.

  Attributes:
    id: short name, unique in its study.
    y: target, as `experiments.fit --y` takes it.
    law: a law's name or a formula, as `--law` takes it.
    size: the variable that tells the sizes apart, one that a config says.
    runs: names of the study's runs.
    layer, over, every: of the target, as the flags of those names.
  """

  id: str
  y: str
  law: str
  size: str
  runs: tuple[str, ...]
  layer: str = "largest"
  over: str = ""
  every: int = 1

  def target(self) -> Target:
    """Reads the target."""
    return targets.parse(self.y, "", self.layer, self.over, self.every)

  @property
  def x(self) -> tuple[str, ...]:
    """The variable of a law by name; a formula names its own."""
    return (self.size,) if self.law in NAMED and "X" in NAMED[self.law][0] else ()


@dataclasses.dataclass(frozen=True)
class Rungs:
  """The runs of a ladder by size.

  Attributes:
    sizes: name -> size.
    designs: name -> the variables of the law, and the size.
  """

  sizes: Mapping[str, float]
  designs: Mapping[str, Mapping[str, float]]

  @property
  def held_out(self) -> tuple[str, ...]:
    """Names of the runs of the largest size."""
    largest = max(self.sizes.values())
    return tuple(name for name, size in self.sizes.items() if size == largest)

  @property
  def fitted(self) -> tuple[str, ...]:
    """Names of all others."""
    return tuple(name for name in self.sizes if name not in self.held_out)


def rungs(ladder: Ladder, configs: Mapping[str, Config]) -> Rungs:
  """Sorts a ladder's runs by size.

  Raises:
    UserError: a declaration that cannot be forecast: too few sizes, a run that the study does not
      have, a law or a size of what is not known before a run.
  """
  where = f"ladder {ladder.id}: "
  for name in ladder.runs:
    if name not in configs:
      raise UserError(f"{where}the study has no run {name}" + nearest(name, configs))
  if len({*ladder.runs}) < len(ladder.runs) or not ladder.runs:
    raise UserError(f"{where}needs runs, each named once")
  columns = variables.of_configs([configs[name] for name in ladder.runs])
  if ladder.size not in columns:
    raise UserError(f"{where}size {ladder.size} is no number of a config"
                    + nearest(ladder.size, columns))
  sizes = np.unique(columns[ladder.size])
  if sizes.size < LEAST_SIZES:
    raise UserError(f"{where}{sizes.size} sizes ({', '.join(f'{s:g}' for s in sizes)}), of at "
                    f"least {LEAST_SIZES}, the largest of which is held out")
  try:
    law = laws.make(ladder.law, columns, ladder.x)
    ladder.target()
  except UserError as error:
    raise UserError(f"{where}{error}") from None
  needed = [*dict.fromkeys([*law.formula.variables, ladder.size])]
  return Rungs(
      {name: float(columns[ladder.size][i]) for i, name in enumerate(ladder.runs)},
      {name: {x: float(columns[x][i]) for x in needed} for i, name in enumerate(ladder.runs)})


def declared(ladder: Ladder, found: Rungs) -> dict[str, Any]:
  """Makes what study.json holds of a ladder before the first run, with its hash."""
  value = {**dataclasses.asdict(ladder), "runs": dict(found.sizes),
           "held_out": list(found.held_out), "target": ladder.target().says()}
  text = json.dumps(value, sort_keys=True)
  return {**value, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def forecast(ladder: Ladder, found: Rungs, runs: Mapping[str, Run]) -> dict[str, Any]:
  """Fits the smaller sizes and forecasts a new run of each design that is held out.

  Returns:
    `fit`, as fit.json; `by_run`: held-out run -> its forecast, a row of the fit's; `band`, see
    of_jax.scaling.band.

  Raises:
    UserError: too few of the runs can be used for the law.
  """
  fitted = [runs[name] for name in found.fitted]
  table = variables.of_runs(fitted, ladder.target(), ".")
  designs = [*{tuple(found.designs[name].items()): None for name in found.held_out}]
  fit = analyse(table, Options(
      law=ladder.law, x=ladder.x, size=ladder.size, delta=_DELTA, simulated=0,
      forecasts=tuple(dict(one) for one in designs)))
  rows = dict(zip(designs, fit["forecasts"], strict=True))
  used = {name: runs[name] for name in table.names}
  return {
      "fit": fit, "by_run": {name: rows[tuple(found.designs[name].items())]
                             for name in found.held_out},
      "band": band.make(ladder.target(), used, found.sizes,
                        max(found.sizes.values()))}
