"""Runs a declared grid, judges its claims and writes the page.

  python -m experiments.study --study=op_block --scale=smoke --root=DIR

Finished runs are skipped and a partial one is resumed, so the same command goes on after an
interruption. --config.a.b=value overrides a field of every run. DIR gets study.json (the claims
and their rules, written before the first run), a folder a run, figure.svg and report.html.

Started several times, on one machine or on many that share DIR (the tasks of a SLURM array), the
workers share the runs: each takes one that nobody holds. What a killed one held, another takes up
after its last checkpoint.

With --vectorise=N up to N runs that differ in seed, learning rate, eps, weight decay, gains or
init alone are trained together, in one compiled step spread over the devices; the others one by
one. Each leaves what it would leave alone.
"""

import contextlib
import os
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping

from absl import flags
from rich.console import Console

from experiments import cli, report, studies
from of_jax.analysis.runs import Run
from of_jax.claims import study_record
from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.report import terminal
from of_jax.storage import remote, run_directory
from of_jax.storage.run_directory import DONE
from of_jax.sweep import members

Train = Callable[[Config, pathlib.Path], None]
TrainTogether = Callable[[Mapping[pathlib.Path, Config]], None]
Analyse = Callable[[pathlib.Path, str], None]
# While other workers hold all the runs that are left.
_SECONDS_BETWEEN_LOOKS = 5.0


def plan(scale: studies.Scale, corpus: str = "") -> dict[str, Config]:
  """Every run's resolved config by name; the command line's overrides win.

  Args:
    scale: the declaration.
    corpus: replaces data.corpus where not empty.

  Raises:
    UserError: an override of a field that the study varies, or a config that cannot be trained.
  """
  varied = {path for own in scale.runs.values() for path, _ in own}
  for path, text in cli.overrides():
    if path in varied:
      raise UserError(f"--config.{path}={text}: the study varies {path} itself")
  # The declaration names files of this clone, wherever the command was typed.
  base = str(pathlib.Path(__file__).parent.parent / scale.config)
  extra = [("data.corpus", corpus)] if corpus else []
  return {name: cli.load_config(base, [*scale.common, *own, *extra])
          for name, own in scale.runs.items()}


def execute(study: str, scale_name: str, root: pathlib.Path, corpus: str = "",
            train: Train | None = None, analyse: Analyse | None = None,
            console: Console | None = None, vectorise: int = 1,
            together: TrainTogether | None = None) -> None:
  """Trains what is not finished, then judges and reports. See the module's docstring.

  Args:
    train: trains or resumes one run; default of_jax.train.train.
    vectorise: how many runs may be trained together.
    together: trains or resumes several; default of_jax.sweep.trainer.train_together.
    analyse: leaves an analysis of a run in its directory; default `analyse_run`.

  Raises:
    UserError: a bad declaration or override, or a `root` that holds something else. Nothing
      has been written then.
  """
  started = time.time()
  console = console or terminal.console()
  scale = studies.load(study, scale_name)
  planned = plan(scale, corpus)
  previous = _check_root(root, study, scale_name, planned)
  train = train or _trainer()
  root.mkdir(parents=True, exist_ok=True)
  settings = [*((("data.corpus", corpus),) if corpus else ()), *cli.overrides()]

  loaded: dict[str, Run] = {}

  def write() -> None:
    # A finished run does not change: it is read once.
    open_runs = [n for n in planned if n not in loaded or not loaded[n].finished]
    loaded.update(study_record.load_runs(root, open_runs))
    runs = {n: loaded[n] for n in planned if n in loaded}
    study_record.write(root, {
        "study": study, "scale": scale_name,
        "claims": study_record.judge(scale.claims, runs, previous),
        "runs": study_record.describe_runs(planned, runs),
        "overrides": {path: text for path, text in settings},
        "paper_setup": dict(scale.paper), "command": _command()})

  write()
  numbers = {name: number for number, name in enumerate(planned, 1)}
  left = dict(planned)

  def say(name: str, how: str = "") -> None:
    console.print(f"run {numbers[name]} of {len(planned)}: {name}{how}", style="bold",
                  highlight=False)

  while left:
    waiting = True
    for names in members.groups(left, vectorise):
      with contextlib.ExitStack() as held:
        ours = [name for name in names
                if held.enter_context(run_directory.claimed(root, name))]
        done = [name for name in names if (root / name / DONE).exists()]
        for name in names:
          if name in ours or name in done:
            waiting = False
            del left[name]
            say(name, " (finished before, or by another worker)" if name in done else "")
        unfinished = {root / name: planned[name] for name in ours if name not in done}
        try:
          if len(unfinished) > 1:
            (together or _together())(unfinished)
          for path, config in unfinished.items() if len(unfinished) == 1 else ():
            train(config, path)
        except UserError:
          _forget(root, planned, previous)
          raise
        missing = [(name, a) for name in ours for a in scale.analyses
                   if not (root / name / f"{a}.json").exists()]
        for name, analysis in missing:
          console.print(f"  {analysis} of the checkpoints of {name}", highlight=False)
          (analyse or analyse_run)(root / name, analysis)
      if missing or unfinished:
        write()
    if left and waiting:
      time.sleep(_SECONDS_BETWEEN_LOOKS)
  write()
  page = report.write(root, console)
  console.print(f"wall time of this command: {terminal.duration(time.time() - started)}",
                highlight=False)
  print(page)


def list_runs(study: str, scale_name: str, root: pathlib.Path | None, corpus: str = "",
              console: Console | None = None) -> None:
  """Prints what `execute` would train, and which runs of it `root`, if given, holds finished."""
  planned = plan(studies.load(study, scale_name), corpus)
  if root is not None:
    _check_root(root, study, scale_name, planned)
  terminal.print_plan(console or terminal.console(), planned, root)


def analyse_run(path: pathlib.Path, name: str) -> None:
  """Leaves NAME.json, and figures where there are any, in a run directory."""
  # Here, because they import jax, as _trainer does.
  from of_jax.analysis import over_training, replay
  from of_jax.report import panel_plots, panels
  from of_jax.storage.run_directory import write_json
  value = over_training.ANALYSES[name](path, replay.checkpoint_steps(path))
  panel_plots.save(panels.of_analysis(value), path, name)
  write_json(path / f"{name}.json", value)


def main() -> None:
  values = flags.FLAGS
  if not values.study:
    raise UserError(f"--study: needs a value, one of {', '.join(studies.names())}")
  if not values.root and not values.dry_run:
    raise UserError("--root: needs a value, as in --root=runs/first")
  if remote.is_url(values.root or ""):
    raise UserError(f"--root={values.root}: workers claim runs by locked files, which Cloud "
                    "Storage does not have; give a folder that they share")
  root = pathlib.Path(os.path.expanduser(values.root)) if values.root else None
  if values.dry_run:
    list_runs(values.study, values.scale, root, values.corpus)
  else:
    assert root is not None
    execute(values.study, values.scale, root, values.corpus, vectorise=values.vectorise)


def _check_root(root: pathlib.Path, study: str, scale: str,
                planned: Mapping[str, Config]) -> dict[str, object] | None:
  """The record that `root` has of this study, if any; refuses a root that holds another one."""
  if root.exists() and not root.is_dir():
    raise UserError(f"--root={root}: not a folder")
  previous = study_record.read(root)
  if previous and (previous["study"], previous["scale"]) != (study, scale):
    raise UserError(f"--root={root}: holds study {previous['study']} at scale "
                    f"{previous['scale']}; choose another folder")
  for name, config in planned.items():
    different = study_record.conflict(root / name, config)
    if different:
      raise UserError(f"--root={root}: its run {name} has {different}; choose another folder")
  return previous


def _forget(root: pathlib.Path, planned: Mapping[str, Config],
            previous: Mapping[str, object] | None) -> None:
  """Removes the record of a study whose first run was refused: nothing was trained."""
  if previous is None and not any((root / name).exists() for name in planned):
    (root / study_record.STUDY).unlink()
    shutil.rmtree(root / run_directory.CLAIMS, ignore_errors=True)
    if not any(root.iterdir()):
      root.rmdir()


def _trainer() -> Train:
  # Here, because it imports jax: a mistake on the command line is reported before that.
  from of_jax.train import train
  return train


def _together() -> TrainTogether:
  from of_jax.sweep.trainer import train_together
  return train_together


def _command() -> str:
  """What was typed, less the place of the clone."""
  name = pathlib.Path(sys.argv[0]).stem
  return " ".join(["python -m experiments." + name, *map(shlex.quote, sys.argv[1:])])


if __name__ == "__main__":
  flags.DEFINE_string("study", "", f"which study: {', '.join(studies.names())}")
  flags.DEFINE_string("scale", "smoke", "smoke (minutes on a CPU), small or paper")
  flags.DEFINE_string("root", "", "folder of the study; made if it does not exist")
  flags.DEFINE_string("corpus", "", "data.corpus of every run; default: the study's own")
  flags.DEFINE_integer("vectorise", 1, "runs to train together where they can be", lower_bound=1)
  flags.DEFINE_bool("dry_run", False, "list the runs and stop")
  cli.run(main)
