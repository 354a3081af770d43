"""Variables of run directories: what a law may depend on. Enters: runs. Leaves: a table."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from of_jax.analysis.runs import Run, find_runs, load_run
from of_jax.config import Config, to_dict
from of_jax.errors import UserError
from of_jax.scaling import targets
from of_jax.scaling.jets import Floats
from of_jax.scaling.table import Table, check_finite
from of_jax.scaling.targets import Target


def _tokens(config: Config) -> float:
  return float(config.train.steps * config.train.batch_size * config.train.sequence_length)


def _of_environment(key: str) -> Callable[[Run], float]:
  def read(run: Run) -> float:
    value = run.env.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan
  return read


def _of_config(read: Callable[[Config], float]) -> Callable[[Run], float]:
  return lambda run: read(run.config)


# Name -> how it is read of a config, so that it is known before a run exists. Every number of a
# config is a variable too, by its dotted name.
OF_CONFIG: Mapping[str, Callable[[Config], float]] = {
    "tokens": _tokens,
    "width": lambda config: float(config.model.width),
    "depth": lambda config: float(config.model.depth),
    "heads": lambda config: float(config.model.heads),
    "learning_rate": lambda config: float(config.optim.learning_rate),
    "batch": lambda config: float(config.train.batch_size),
    "batch_tokens": lambda config: float(config.train.batch_size * config.train.sequence_length),
    "sequence_length": lambda config: float(config.train.sequence_length),
    "steps": lambda config: float(config.train.steps),
    "seed": lambda config: float(config.train.seed),
}
VARIABLES: Mapping[str, Callable[[Run], float]] = {
    "parameters": _of_environment("parameters"),
    "parameters_without_embeddings": _of_environment("parameters_without_embeddings"),
    # 6 N D and attention, as the task counts them (see objectives.tasks).
    "flops": lambda run: _of_environment("flops_per_token")(run) * _tokens(run.config),
    "flops_per_token": _of_environment("flops_per_token"),
    **{name: _of_config(read) for name, read in OF_CONFIG.items()},
}


def read_root(root: str | pathlib.Path, target: Target) -> Table:
  """Reads the points of a folder of runs, or of a study.

  Runs that diverged, are not finished or lack the target are counted, and are no points.

  Raises:
    UserError: no runs there, none that can be used, or none with the target.
  """
  paths = find_runs(root)
  if not paths:
    raise UserError(f"--root={root}: holds no run directory")
  return of_runs([load_run(path) for path in paths], target, str(root))


def of_runs(runs: Sequence[Run], target: Target, root: str) -> Table:
  """Makes the points of runs of a folder, as `read_root`."""
  targets.check(target, runs)
  left_out: dict[str, list[str]] = {}
  kept, values = [], []
  for run in runs:
    value = target.of(run)
    why = ("diverged" if run.diverged else "not finished" if not run.finished
           else f"no {target.name}" if math.isnan(value) else "")
    if why:
      left_out.setdefault(why, []).append(run.name)
    else:
      kept.append(run)
      values.append(value)
  if not kept:
    raise UserError(f"--root={root}: no run can be used: " + ", ".join(
        f"{len(names)} {why}" for why, names in left_out.items()))
  table = Table(tuple(run.name for run in kept), columns(kept), np.array(values), target.name,
                target.says(), {why: tuple(names) for why, names in left_out.items()},
                tuple(targets.notes(target, kept)), root)
  check_finite(table, f"--root={root}, ")
  return table


def columns(runs: Sequence[Run]) -> dict[str, Floats]:
  """Reads every variable of every run; one that some run lacks is left out."""
  found = {name: np.array([read(run) for run in runs]) for name, read in VARIABLES.items()}
  return _finite(found | _numbers([run.config for run in runs]))


def of_configs(configs: Sequence[Config]) -> dict[str, Floats]:
  """Reads every variable that is known of configs alone."""
  found = {name: np.array([read(one) for one in configs]) for name, read in OF_CONFIG.items()}
  return _finite(found | _numbers(configs))


def _numbers(configs: Sequence[Config]) -> dict[str, Floats]:
  """Reads the numbers of configs by their dotted names."""
  found = {}
  for section, fields in to_dict(configs[0]).items():
    for name in fields:
      values = [getattr(getattr(config, section), name, None) for config in configs]
      if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        found[f"{section}.{name}"] = np.array(values, np.float64)
  return found


def _finite(found: Mapping[str, Floats]) -> dict[str, Floats]:
  return {name: values for name, values in found.items() if np.isfinite(values).all()}
