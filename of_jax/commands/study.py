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

import collections
import contextlib
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence

from absl import flags
from rich.console import Console

from of_jax.analysis.runs import Run
from of_jax.claims import study_record
from of_jax.claims.alarms import Watch
from of_jax.claims.forecasts import Forecasts, said
from of_jax.commands import cli, report, studies
from of_jax.commands.study_parts import (
    Analyse,
    Train,
    TrainTogether,
    analyse_run,
    check_finished,
    command,
    forget,
    together_trainer,
    trainer,
)
from of_jax.config import Config
from of_jax.config.paths import check_utf8
from of_jax.errors import UserError
from of_jax.report import terminal
from of_jax.storage import remote, run_directory
from of_jax.storage.run_directory import DONE, METRICS
from of_jax.sweep import members

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
  study = studies.short_name(study)
  planned = plan(scale, corpus)
  forecasts = Forecasts(root, scale.ladders, planned)
  record = _Record(study, scale_name, root, scale, planned, corpus,
                   _check_root(root, study, scale_name, planned), forecasts)
  forecasts.check(record.previous)
  worker = _Worker(record, console, train or trainer(strict_resume),
                   together or together_trainer(strict_resume), analyse or analyse_run)
  root.mkdir(parents=True, exist_ok=True)
  check_finished(root, planned, console, strict_resume)
  record.write()
  while worker.left:
    waiting = not worker.forecast()
    for names in members.groups(worker.ready(), vectorise):
      if worker.take(names):
        waiting = False
    if worker.left and waiting:
      time.sleep(_SECONDS_BETWEEN_LOOKS)
  record.write()
  page = report.write(root, console)
  for line in said(forecasts.entries(record.loaded)):
    console.print(line, highlight=False)
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
    forecasts: of the study's ladders.
    loaded: the runs as read last.
  """

  study: str
  scale_name: str
  root: pathlib.Path
  scale: studies.Scale
  planned: Mapping[str, Config]
  corpus: str
  previous: Mapping[str, object] | None
  forecasts: Forecasts
  loaded: dict[str, Run] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    self._declared = studies.configs(self.scale)

  def write(self) -> None:
    """Reads the runs that were not finished before, judges the claims and writes study.json."""
    # One worker after the other, so that none writes an older state over a newer one.
    with run_directory.waiting_for(self.root, study_record.STUDY):
      self._write()

  def _write(self) -> None:
    # A finished run does not change: it is read once.
    open_runs = [n for n in self.planned if n not in self.loaded or not self.loaded[n].finished]
    self.loaded.update(study_record.load_runs(self.root, open_runs))
    runs = {n: self.loaded[n] for n in self.planned if n in self.loaded}
    settings = [*((("data.corpus", self.corpus),) if self.corpus else ()), *cli.overrides()]
    study_record.write(self.root, {
        "study": self.study, "scale": self.scale_name, **studies.about(self.scale),
        "claims": study_record.judge(self.scale.claims, runs, self.previous,
                                     self._declared),
        "runs": study_record.describe_runs(self.planned, runs),
        "overrides": {path: text for path, text in settings},
        "ladders": self.forecasts.declared(), "forecasts": self.forecasts.entries(runs),
        "paper_setup": dict(self.scale.paper), "command": command()})


# What a run's duration depends on most.
_Size = tuple[int, ...]


def _size(config: Config) -> _Size:
  model, train = config.model, config.train
  return (model.width, model.depth, train.steps, train.batch_size, train.sequence_length)


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
    # By size, the seconds of each run that was trained here from its first step.
    self._seconds: dict[_Size, list[float]] = collections.defaultdict(list)
    self._numbers = {name: number for number, name in enumerate(record.planned, 1)}
    self._unforecast = record.forecasts.missing()

  def ready(self) -> dict[str, Config]:
    """Lists the runs that are left and wait for no forecast."""
    held = self._record.forecasts.waiting()
    return {name: config for name, config in self.left.items() if name not in held}

  def forecast(self) -> bool:
    """Writes the forecasts for which all runs are there; says whether there is a new one."""
    record, before = self._record, self._unforecast
    for ladder in record.forecasts.missing():
      names = record.forecasts.fitted(ladder)
      files = [record.root / name / file for name in names
               for file in (DONE, *(f"{a}.json" for a in record.scale.analyses))]
      if all(file.exists() for file in files):
        record.forecasts.write(ladder, study_record.load_runs(record.root, names))
    self._unforecast = record.forecasts.missing()
    if self._unforecast == before:
      return False
    # With its hash in study.json before any run that it is of, whoever wrote it.
    record.write()
    for line in said(record.forecasts.entries({})):
      self._console.print(line, highlight=False)
    return True

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
                        + ("" if how else self._time_left(name)), style="bold", highlight=False)

  def _time_left(self, name: str) -> str:
    """Says how long this run and all that are left would take, once runs of all their sizes were
    timed."""
    left = [_size(self._record.planned[n]) for n in (name, *self.left)]
    if not self._seconds.keys() >= {*left}:
      return ""
    seconds = sum(statistics.mean(self._seconds[size]) for size in left)
    return f" (about {terminal.duration(seconds)} for the {len(left)} left)"

  def _train_runs(self, names: Sequence[str]) -> bool:
    """Trains these runs, several of them in one program; says whether there was any."""
    record = self._record
    unfinished = {record.root / name: record.planned[name] for name in names}
    watch = Watch({path: record.forecasts.band(path.name) for path in unfinished},
                  lambda line: self._console.print(line, style="bold red", highlight=False))
    new = [name for name in names if not (record.root / name / METRICS).exists()]
    begun = time.monotonic()
    try:
      with watch:
        if len(unfinished) > 1:
          self._together(unfinished)
        for path, config in unfinished.items() if len(unfinished) == 1 else ():
          self._train(config, path)
    except UserError:
      forget(record.root, record.planned, record.previous)
      raise
    seconds = time.monotonic() - begun
    for name in new if len(new) == len(names) else ():
      self._seconds[_size(record.planned[name])].append(seconds / len(names))
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
  scale = studies.load(study, scale_name)
  planned = plan(scale, corpus)
  forecasts = Forecasts(root or pathlib.Path(), scale.ladders, planned)
  if root is not None:
    forecasts.check(_check_root(root, studies.short_name(study), scale_name, planned))
  terminal.print_plan(console or terminal.console(), planned, root)


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


if __name__ == "__main__":
  flags.DEFINE_string("study", "", f"which study: {', '.join(studies.names())}; or a file of your "
                      "own that declares one, as mine.py")
  flags.DEFINE_string("scale", "smoke", "smoke (minutes on a CPU), small or paper")
  flags.DEFINE_string("root", "", "folder of the study; made if it does not exist")
  flags.DEFINE_string("corpus", "", "data.corpus of every run; default: the study's own")
  flags.DEFINE_integer("vectorise", 1, "runs to train together where they can be", lower_bound=1,
                       upper_bound=10_000)
  flags.DEFINE_bool("dry_run", False, "list the runs and stop")
  flags.DEFINE_bool("strict_resume", False, "refuse to resume a run whose checkpoint or "
                    "metrics.jsonl is damaged; by default it goes on from an older checkpoint")
  cli.run(main)
