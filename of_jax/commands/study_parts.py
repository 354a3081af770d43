"""Parts of a study that run when the command line is known to be right: training, analysis, and
taking back what was written where the first run is refused.
"""

import pathlib
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping

from rich.console import Console

from of_jax.claims import study_record
from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.storage import run_directory
from of_jax.storage.run_directory import DONE

Train = Callable[[Config, pathlib.Path], None]
TrainTogether = Callable[[Mapping[pathlib.Path, Config]], None]
Analyse = Callable[[pathlib.Path, str], None]


def analyse_run(path: pathlib.Path, name: str) -> None:
  """Analyses a run's checkpoints: leaves NAME.json, and figures if there are any, in its folder.

  Args:
    path: the run directory.
    name: an analysis of of_jax.analysis.registry.
  """
  # Here, because they import jax, as _trainer does.
  from of_jax.analysis import registry, replay
  from of_jax.report import panel_plots, panels
  from of_jax.storage.run_directory import write_json
  value = registry.load(name)(path, replay.checkpoint_steps(path))
  panel_plots.save(panels.of_analysis(value), path, name)
  write_json(path / f"{name}.json", value)


def forget(root: pathlib.Path, planned: Mapping[str, Config],
            previous: Mapping[str, object] | None) -> None:
  """Removes the record of a study whose first run was refused: nothing was trained."""
  if previous is None and not any((root / name).exists() for name in planned):
    (root / study_record.STUDY).unlink()
    shutil.rmtree(root / run_directory.CLAIMS, ignore_errors=True)
    if not any(root.iterdir()):
      root.rmdir()


def check_finished(root: pathlib.Path, planned: Mapping[str, Config],
                   console: Console, strict: bool) -> None:
  """Holds each run that is marked as finished against its files; what is not goes on.

  Args:
    root: the study's folder.
    planned: config of each run by name.
    console: takes a line for each run that goes on.
    strict: refuses instead, and changes nothing.

  Raises:
    UserError: `strict`, or a run that is marked without its config.json.
  """
  for name, config in planned.items():
    workdir = root / name
    if not (workdir / DONE).exists():
      continue
    if not (workdir / run_directory.CONFIG).is_file():
      raise UserError(f"{workdir}: is marked {DONE} and has no {run_directory.CONFIG}; put it "
                      "back, or remove the folder")
    # Here, because it imports jax, as `trainer` does.
    from of_jax.train.finished import is_over
    with run_directory.claimed(root, name) as is_ours:
      if is_ours:
        is_over(workdir, config, lambda line: console.print(line, highlight=False, soft_wrap=True),
                strict)


def trainer(strict_resume: bool) -> Train:
  """Gives what trains a run."""
  def train(config: Config, workdir: pathlib.Path) -> None:
    # Here, because it imports jax: a mistake on the command line is reported before that.
    from of_jax.train import train
    train(config, workdir, strict_resume=strict_resume)

  return train


def together_trainer(strict_resume: bool) -> TrainTogether:
  """Gives what trains several runs in one program."""
  def train(runs: Mapping[pathlib.Path, Config]) -> None:
    from of_jax.sweep.trainer import train_together
    train_together(runs, strict_resume=strict_resume)

  return train


def command() -> str:
  """Returns the command as it was typed, less the place of the clone."""
  name = pathlib.Path(sys.argv[0]).stem
  return " ".join(["python -m experiments." + name, *map(shlex.quote, sys.argv[1:])])
