"""Run directories as arrays. Enters: a folder that the trainer wrote, finished or not.
Leaves: a `Run` with its config, environment, curves and telemetry.

A run may still be going on while it is read, so a torn last line and files that are not there
yet are no error; they are named in `Run.notes`.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from of_jax import config as config_lib
from of_jax.analysis import tidy
from of_jax.analysis.curves import Curves, Floats, Measured, by_step, column, curves
from of_jax.config import declared_metrics, own_code
from of_jax.config.kinds import kind_of
from of_jax.config.rules.fields import check_sizes, check_types
from of_jax.errors import UserError, refusing
from of_jax.interop.source import NO_CORPUS
from of_jax.storage import record, remote
from of_jax.storage.run_directory import (
    CONFIG,
    DONE,
    ENVIRONMENT,
    METRICS,
    TIMING,
    USER_METRICS,
    read_lines,
    read_object,
)

if TYPE_CHECKING:
  import pandas

MEASURED = "measure.json"

# The site that claims and pages speak of: the stream entering each block.
SITE = "resid_pre"

# What is looked through for runs and studies: more is a mistyped root.
_MOST_FOLDERS = 20_000


@dataclasses.dataclass(frozen=True)
class Run:
  """A training run, as far as it got."""

  name: str
  path: pathlib.Path
  config: config_lib.Config
  env: Mapping[str, Any]
  train: Curves
  eval: Curves
  seconds_by_step: Floats
  tokens_per_second: Floats
  finished: bool
  notes: tuple[str, ...] = ()

  @property
  def steps_done(self) -> int:
    """The last step that was logged; 0 before the first."""
    return int(self.train.steps[-1]) if self.train.steps.size else 0

  @property
  def final_loss(self) -> float:
    """The last evaluation's loss, see `loss_unit`; NaN if there is none or it diverged."""
    return float(self.eval.loss[-1]) if self.eval.loss.size else math.nan

  @property
  def final_accuracy(self) -> float:
    """The last evaluation's share of images told right; NaN for tokens."""
    return float(self.eval.accuracy[-1]) if self.eval.accuracy.size else math.nan

  @property
  def is_loaded(self) -> bool:
    """Whether it holds weights from elsewhere, as `experiments.load --out` leaves them."""
    return "loaded_from" in self.env or self.config.data.corpus == NO_CORPUS

  @property
  def reads_images(self) -> bool:
    """Whether the model reads images, one target each, and no tokens."""
    return kind_of(self.config.model.kind).inputs == "images"

  @property
  def seconds(self) -> float:
    """Seconds of all timed steps; NaN where none was timed."""
    return float(np.nansum(self.seconds_by_step)) if self.seconds_by_step.size else math.nan

  @property
  def diverged(self) -> bool:
    """Whether some logged loss, or some measured kurtosis of the stream, is not finite."""
    kurtosis = self.measured("kurtosis").values
    return not all(bool(np.isfinite(a).all())
                   for a in (self.train.loss, self.eval.loss, kurtosis))

  @property
  def checkpoints(self) -> tuple[int, ...]:
    """The steps of the checkpoints that are there, ascending; `of_jax.analysis.restore(run.path,
    step)` opens one."""
    return tuple(remote.saved_steps(remote.checkpoints(self.path)))

  def metrics(self) -> "pandas.DataFrame":
    """Tabulates everything logged: step, split, site, layer, metric, value; see
    of_jax.analysis.tidy.Row.

    Raises:
      UserError: pandas is not installed.
    """
    return tidy.frame(list(tidy.rows(self.path)))

  def measured(self, metric: str, site: str = SITE) -> Measured:
    """Reads `metric` at `site` on training batches, or on the evaluation set where only that is.

    A metric that was not measured comes back with no steps.
    """
    for split in (self.train, self.eval):
      found = split.telemetry.get(site, {}).get(metric)
      if found is not None:
        return found
    return Measured(np.zeros(0, np.int64), np.zeros((0, 0)))

  def peak(self, metric: str, site: str = SITE) -> float:
    """Finds the largest finite value over layers and logged steps; NaN if there is none."""
    finite = self.measured(metric, site).values
    finite = finite[np.isfinite(finite)]
    return float(finite.max()) if finite.size else math.nan

  def peak_at(self, metric: str, site: str = SITE) -> tuple[int, int] | None:
    """Finds (layer, step) of `peak`; None if there is no finite value."""
    measured = self.measured(metric, site)
    finite = np.where(np.isfinite(measured.values), measured.values, -np.inf)
    if not finite.size or np.isneginf(finite.max()):
      return None
    row, layer = np.unravel_index(int(finite.argmax()), finite.shape)
    return int(layer), int(measured.steps[row])

  def mean(self, metric: str, site: str = SITE) -> float:
    """Averages the finite values over layers and logged steps; NaN if there is none."""
    finite = self.measured(metric, site).values
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else math.nan


def loss_unit(runs: Mapping[str, Run]) -> str:
  """Names the unit of the runs' losses."""
  units = ["squared error, mean over classes" if run.reads_images else "nats a token"
           for run in runs.values()]
  return " or ".join(dict.fromkeys(units))


def find_runs(root: str | pathlib.Path) -> list[pathlib.Path]:
  """Finds `root` itself if it is a run directory, else every run directory in it, by name."""
  root = pathlib.Path(root)
  if (root / CONFIG).is_file():
    return [root]
  if not root.is_dir():
    return []
  return sorted(p for p in root.iterdir() if (p / CONFIG).is_file())


def load_runs(root: str | pathlib.Path) -> dict[str, Run]:
  """Reads every run directory below `root`, however deep, or `root` itself if it is one.

  Returns:
    The runs by their paths from `root`, in the order of these.

  Raises:
    UserError: no such folder, or a run in it that cannot be read.
  """
  return {name: load_run(path) for name, path in find_all_runs(root).items()}


def find_all_runs(root: str | pathlib.Path) -> dict[str, pathlib.Path]:
  """Finds every run directory below `root` by its path from there, or `root` by its own name.

  Raises:
    UserError: no such folder.
  """
  folder = remote.reading(root)
  if not folder.is_dir():
    raise UserError(f"{root}: no such folder")
  found = {}
  for path in folders_with(CONFIG, folder):
    found[str(path.relative_to(folder)) if path != folder else path.resolve().name] = path
  return dict(sorted(found.items()))


def folders_with(name: str, root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Finds the folders below `root`, or `root` itself, that hold a file; what lies in one of them,
  or is hidden, is not looked at.

  Raises:
    UserError: there are more than 20,000 folders, as below `/`.
  """
  for looked_at, (here, folders, files) in enumerate(os.walk(root)):
    if looked_at == _MOST_FOLDERS:
      raise UserError(f"{root}: has more than {_MOST_FOLDERS:,} folders to look through; give one "
                      "that is nearer to what you look for")
    folders[:] = [] if name in files else sorted(f for f in folders if not f.startswith("."))
    if name in files:
      yield pathlib.Path(here)


def load_run(path: str | pathlib.Path) -> Run:
  """Reads one run directory, also of Cloud Storage.

  Raises:
    UserError: no run directory, a broken config or metrics line (the file and the line are
      named), or a finished run whose metrics are gone or changed.
  """
  path = remote.reading(path)
  with refusing(str(path), "is no run that can be read"):
    return _load_run(path)


def _load_run(path: pathlib.Path) -> Run:
  config = read_config(path)
  finished = (path / DONE).exists()
  notes: list[str] = []
  for name in (ENVIRONMENT, METRICS, TIMING):
    if not (path / name).is_file():
      if finished and name == METRICS:
        raise UserError(f"{path / name}: missing, though the run is marked {DONE}")
      notes.append(f"no {name}")
  if finished and (step := record.changed_since(path)) is not None:
    raise UserError(f"{path / METRICS}: is not what it was at checkpoint {step}; the command that "
                    "trained the run mends it")
  env = read_object(path / ENVIRONMENT) if (path / ENVIRONMENT).is_file() else {}
  records, timing = by_step(read_lines(path / METRICS)), list(read_lines(path / TIMING))
  return Run(
      name=path.resolve().name, path=path, config=config, env=env,
      train=curves(records, "train"), eval=curves(records, "eval"),
      seconds_by_step=column(timing, "seconds"),
      tokens_per_second=column(timing, "tokens_per_second"),
      finished=finished, notes=tuple(notes))


def read_analysis(run: Run, name: str) -> Mapping[str, Any] | None:
  """Reads what the analysis NAME, see of_jax.analysis.registry, left as NAME.json; None without.

  Raises:
    UserError: a file of that name that holds something else.
  """
  path = run.path / f"{name}.json"
  if not path.is_file():
    return None
  value = read_object(path)
  if value.get("analysis") != name or not value.get("steps"):
    raise UserError(f"{path}: not the analysis of that name; remove it and run the study again")
  return value


def read_measurements(run: Run) -> list[Mapping[str, Any]]:
  """Reads what `experiments.measure --out` left in the run's own folder, one object a step.

  Raises:
    UserError: a measure.json that holds something else.
  """
  path = run.path / MEASURED
  if not path.is_file():
    return []
  value = read_object(path)
  steps = value.get("steps", [value])
  if not isinstance(steps, list) or not all(
      isinstance(one, dict) and {"loss", "step", "telemetry"} <= set(one) for one in steps):
    raise UserError(f"{path}: holds no measurements; remove it and measure again")
  return steps


def read_config(path: pathlib.Path) -> config_lib.Config:
  """Reads the config of one run directory, with what fields added since then have for it.

  Raises:
    UserError: it is none, or the config is broken.
  """
  if not (path / CONFIG).is_file():
    raise UserError(f"{path}: not a run directory, it holds no {CONFIG}")
  sections = read_object(path / CONFIG)
  try:
    # A directory that came from elsewhere must not choose which file is read here.
    config = own_code.of_run(config_lib.from_dict(sections), path)
    check_types(config)
    check_sizes(config)
  except UserError as error:
    raise UserError(f"{path / CONFIG}: {error}") from None
  try:
    return config_lib.resolve(config)
  except UserError:
    # Refused today, trained when the run was made: it stands as it is.
    return config


def own_metrics(path: pathlib.Path, config: config_lib.Config) -> tuple[str, ...]:
  """Lists `telemetry.user_metrics`, by the run directory's own copies of files where they are."""
  texts = config.telemetry.user_metrics
  files = list(dict.fromkeys(text.rpartition(":")[0] for text in texts))

  def copied(text: str) -> str:
    file, _, name = text.rpartition(":")
    copy = path / USER_METRICS / f"{files.index(file)}_{pathlib.Path(file).name}"
    return f"{copy}:{name}" if copy.is_file() else text

  return tuple(map(copied, texts))


def without_user_code(config: config_lib.Config) -> config_lib.Config:
  """Leaves out the metrics that are Python of a user's own, which a run directory brings."""
  telemetry = config.telemetry
  known = {name for metric in declared_metrics.metrics().values()
           for name in declared_metrics.names_of(metric)}
  return dataclasses.replace(config, telemetry=dataclasses.replace(
      telemetry, user_metrics=(),
      metrics=tuple(name for name in telemetry.metrics if name in known)))
