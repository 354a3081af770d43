"""Variables of run directories: what a law may depend on. Enters: runs. Leaves: a table."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from of_jax.analysis.runs import Run, find_runs, load_run
from of_jax.config import to_dict
from of_jax.errors import UserError
from of_jax.scaling import targets
from of_jax.scaling.jets import Floats
from of_jax.scaling.table import Table, check_finite
from of_jax.scaling.targets import Target


def _tokens(run: Run) -> float:
  train = run.config.train
  return float(train.steps * train.batch_size * train.sequence_length)


def _of_environment(key: str) -> Callable[[Run], float]:
  def read(run: Run) -> float:
    value = run.env.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan
  return read


# Name -> how it is read. Every number of a config is a variable too, by its dotted name.
VARIABLES: Mapping[str, Callable[[Run], float]] = {
    "parameters": _of_environment("parameters"),
    "parameters_without_embeddings": _of_environment("parameters_without_embeddings"),
    "tokens": _tokens,
    # 6 N D and attention, as the task counts them (see objectives.tasks).
    "flops": lambda run: _of_environment("flops_per_token")(run) * _tokens(run),
    "flops_per_token": _of_environment("flops_per_token"),
    "width": lambda run: float(run.config.model.width),
    "depth": lambda run: float(run.config.model.depth),
    "heads": lambda run: float(run.config.model.heads),
    "learning_rate": lambda run: float(run.config.optim.learning_rate),
    "batch": lambda run: float(run.config.train.batch_size),
    "batch_tokens": lambda run: float(run.config.train.batch_size
                                      * run.config.train.sequence_length),
    "sequence_length": lambda run: float(run.config.train.sequence_length),
    "steps": lambda run: float(run.config.train.steps),
    "seed": lambda run: float(run.config.train.seed),
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
  runs = [load_run(path) for path in paths]
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
                tuple(targets.notes(target, kept)), str(root))
  check_finite(table, f"--root={root}, ")
  return table


def columns(runs: Sequence[Run]) -> dict[str, Floats]:
  """Reads every variable of every run; one that some run lacks is left out."""
  found = {name: np.array([read(run) for run in runs]) for name, read in VARIABLES.items()}
  for section, fields in to_dict(runs[0].config).items():
    for name in fields:
      values = [getattr(getattr(run.config, section), name, None) for run in runs]
      if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        found[f"{section}.{name}"] = np.array(values, np.float64)
  return {name: values for name, values in found.items() if np.isfinite(values).all()}
