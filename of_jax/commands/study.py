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
import dataclasses
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from absl import flags
from rich.console import Console

from of_jax.analysis.runs import Run
from of_jax.claims import study_record
from of_jax.commands import cli, report, studies
from of_jax.config import Config
from of_jax.config.paths import check_utf8
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
  """Resolves every run's config, by name; the command line's overrides win.

  Args:
    scale: the study's declaration at one scale.
    corpus: replaces data.corpus where not empty.

  Raises:
    UserError: an override of a field that the study varies, or a config that cannot be trained.
  """
  varied = {path for own in scale.runs.values() for path, _ in own}
  for path, text in cli.overrides():
    if path in varied:
      raise UserError(f"--config.{path}={text}: the study varies {path} itself")
  extra = [("data.corpus", corpus)] if corpus else []
  return {name: cli.load_config(studies.base_config(scale), [*scale.common, *own, *extra])
          for name, own in scale.runs.items()}


def execute(study: str, scale_name: str, root: pathlib.Path, corpus: str = "",
            train: Train | None = None, analyse: Analyse | None = None,
            console: Console | None = None, vectorise: int = 1,
            together: TrainTogether | None = None, strict_resume: bool = False) -> None:
  """Trains what is not finished, then judges and reports. See the module's docstring.

  Args:
    study: its name.
    scale_name: one of its scales.
    root: the study's folder; made if it does not exist.
    corpus: replaces data.corpus where not empty.
    train: trains or resumes one run; default of_jax.train.train.
    analyse: leaves an analysis of a run in its directory; default `analyse_run`.
    console: takes the lines for people; default the terminal.
    vectorise: how many runs may be trained together.
    together: trains or resumes several; default of_jax.sweep.trainer.train_together.
    strict_resume: has the two defaults refuse a run in which anything is damaged.

  Raises:
    UserError: a bad declaration or override, or a `root` that holds something else. Nothing
      has been written then.
  """
  started = time.time()
  console = console or terminal.console()
  scale = studies.load(study, scale_name)
  planned = plan(scale, corpus)
  record = _Record(study, scale_name, root, scale, planned, corpus,
                   _check_root(root, study, scale_name, planned))
  worker = _Worker(record, console, train or _trainer(strict_resume),
                   together or _together(strict_resume), analyse or analyse_run)
  root.mkdir(parents=True, exist_ok=True)
  record.write()
  while worker.left:
    waiting = True
    for names in members.groups(worker.left, vectorise):
      if worker.take(names):
        waiting = False
    if worker.left and waiting:
      time.sleep(_SECONDS_BETWEEN_LOOKS)
  record.write()
  page = report.write(root, console)
  console.print(f"wall time of this command: {terminal.duration(time.time() - started)}",
                highlight=False)
  print(page)


@dataclasses.dataclass
class _Record:
  """A study's study.json, written anew as runs finish.

  Attributes:
    planned: every run's resolved config by name.
    corpus: what replaces data.corpus, or "".
    previous: the study.json that the folder had at the start, if any.
    loaded: the runs as read last.
  """

  study: str
  scale_name: str
  root: pathlib.Path
  scale: studies.Scale
  planned: Mapping[str, Config]
  corpus: str
  previous: Mapping[str, object] | None
  loaded: dict[str, Run] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    self._declared = studies.configs(self.scale)

  def write(self) -> None:
    """Reads the runs that were not finished before, judges the claims and writes study.json."""
    # A finished run does not change: it is read once.
    open_runs = [n for n in self.planned if n not in self.loaded or not self.loaded[n].finished]
    self.loaded.update(study_record.load_runs(self.root, open_runs))
    runs = {n: self.loaded[n] for n in self.planned if n in self.loaded}
    settings = [*((("data.corpus", self.corpus),) if self.corpus else ()), *cli.overrides()]
    study_record.write(self.root, {
        "study": self.study, "scale": self.scale_name,
        "claims": study_record.judge(self.scale.claims, runs, self.previous,
                                     self._declared),
        "runs": study_record.describe_runs(self.planned, runs),
        "overrides": {path: text for path, text in settings},
        "paper_setup": dict(self.scale.paper), "command": _command()})


class _Worker:
  """One of the processes that share a study's runs.

  Attributes:
    left: config by name of the runs that this worker has neither trained nor seen finished.
  """

  def __init__(self, record: _Record, console: Console, train: Train,
               together: TrainTogether, analyse: Analyse):
    self.left = dict(record.planned)
    self._record, self._console = record, console
    self._train, self._together, self._analyse = train, together, analyse
    # Seconds of each run that was trained here.
    self._trained: list[float] = []
    self._numbers = {name: number for number, name in enumerate(record.planned, 1)}

  def take(self, names: Sequence[str]) -> bool:
    """Trains and analyses those runs of one group that no other worker holds.

    Returns:
      Whether there was any, or one that is finished; else other workers hold them all.
    """
    root, took = self._record.root, False
    with contextlib.ExitStack() as held:
      ours = [name for name in names
              if held.enter_context(run_directory.claimed(root, name))]
      done = [name for name in names if (root / name / DONE).exists()]
      for name in names:
        if name in ours or name in done:
          took = True
          del self.left[name]
          self._say(name, " (finished before, or by another worker)" if name in done else "")
      trained = self._train_runs([name for name in ours if name not in done])
      analysed = self._analyse_runs(ours)
    if analysed or trained:
      self._record.write()
    return took

  def _say(self, name: str, how: str) -> None:
    self._console.print(f"run {self._numbers[name]} of {len(self._numbers)}: {name}{how}"
                        + ("" if how else self._time_left()), style="bold", highlight=False)

  def _time_left(self) -> str:
    """Says how long all that is left would take, this run included, at the rate of those trained.
    """
    if not self._trained:
      return ""
    each = sum(self._trained) / len(self._trained)
    # The run that is said is no longer among those left.
    left = (len(self.left) + 1) * each
    return f" (about {terminal.duration(left)} for the {len(self.left) + 1} left)"

  def _train_runs(self, names: Sequence[str]) -> bool:
    """Trains these runs, several of them in one program; says whether there was any."""
    record = self._record
    unfinished = {record.root / name: record.planned[name] for name in names}
    begun = time.monotonic()
    try:
      if len(unfinished) > 1:
        self._together(unfinished)
      for path, config in unfinished.items() if len(unfinished) == 1 else ():
        self._train(config, path)
    except UserError:
      _forget(record.root, record.planned, record.previous)
      raise
    seconds = time.monotonic() - begun
    self._trained += [seconds / len(unfinished) for _ in unfinished]
    return bool(unfinished)

  def _analyse_runs(self, names: Sequence[str]) -> bool:
    """Makes the analyses that these runs lack; says whether there was any."""
    root = self._record.root
    missing = [(name, a) for name in names for a in self._record.scale.analyses
               if not (root / name / f"{a}.json").exists()]
    for name, analysis in missing:
      self._console.print(f"  {analysis} of the checkpoints of {name}", highlight=False)
      self._analyse(root / name, analysis)
    return bool(missing)


def list_runs(study: str, scale_name: str, root: pathlib.Path | None, corpus: str = "",
              console: Console | None = None) -> None:
  """Prints what `execute` would train, and which runs of it `root`, if given, holds finished."""
  planned = plan(studies.load(study, scale_name), corpus)
  if root is not None:
    _check_root(root, study, scale_name, planned)
  terminal.print_plan(console or terminal.console(), planned, root)


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


def main() -> None:
  values = flags.FLAGS
  if not values.study:
    raise UserError(f"--study: needs a value, one of {', '.join(studies.names())}")
  if not values.root and not values.dry_run:
    raise UserError("--root: needs a value, as in --root=runs/first")
  if remote.is_url(values.root or ""):
    raise UserError(f"--root={values.root}: workers claim runs by locked files, which Cloud "
                    "Storage does not have; give a folder that they share")
  root = cli.output_folder("root")
  if root is not None:
    check_utf8(f"--root={root}", root)
  if values.dry_run:
    list_runs(values.study, values.scale, root, values.corpus)
  else:
    assert root is not None
    execute(values.study, values.scale, root, values.corpus, vectorise=values.vectorise,
            strict_resume=values.strict_resume)


def _check_root(root: pathlib.Path, study: str, scale: str,
                planned: Mapping[str, Config]) -> dict[str, object] | None:
  """Reads the record that `root` has of this study, if any; refuses one that holds another."""
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


def _trainer(strict_resume: bool) -> Train:
  def train(config: Config, workdir: pathlib.Path) -> None:
    # Here, because it imports jax: a mistake on the command line is reported before that.
    from of_jax.train import train
    train(config, workdir, strict_resume=strict_resume)

  return train


def _together(strict_resume: bool) -> TrainTogether:
  def train(runs: Mapping[pathlib.Path, Config]) -> None:
    from of_jax.sweep.trainer import train_together
    train_together(runs, strict_resume=strict_resume)

  return train


def _command() -> str:
  """Returns the command as it was typed, less the place of the clone."""
  name = pathlib.Path(sys.argv[0]).stem
  return " ".join(["python -m experiments." + name, *map(shlex.quote, sys.argv[1:])])


if __name__ == "__main__":
  flags.DEFINE_string("study", "", f"which study: {', '.join(studies.names())}")
  flags.DEFINE_string("scale", "smoke", "smoke (minutes on a CPU), small or paper")
  flags.DEFINE_string("root", "", "folder of the study; made if it does not exist")
  flags.DEFINE_string("corpus", "", "data.corpus of every run; default: the study's own")
  flags.DEFINE_integer("vectorise", 1, "runs to train together where they can be", lower_bound=1,
                       upper_bound=10_000)
  flags.DEFINE_bool("dry_run", False, "list the runs and stop")
  flags.DEFINE_bool("strict_resume", False, "refuse to resume a run whose checkpoint or "
                    "metrics.jsonl is damaged; by default it goes on from an older checkpoint")
  cli.run(main)
