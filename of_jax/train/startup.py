"""The start of runs, alone or together: what is checked, read and written before the first step.

The order is that a mistake is found before time is spent and before anything is written: the run
directories, the corpus, the parameters to start from, the disk; then locks, config.json,
checkpoints, env.json, the logs, and the state.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

from of_jax import config as config_lib
from of_jax.config import Config
from of_jax.data.corpora import prepare
from of_jax.data.folder import Described
from of_jax.data.loader import Shuffled, make_batches
from of_jax.objectives.tasks import task_of
from of_jax.storage import checkpoint, remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import distributed, environment, init_from, provenance, writers
from of_jax.train.init_from import InitialParameters
from of_jax.train.sharding import local_rows
from of_jax.train.trainer import Trainer
from of_jax.train.types import Log, State


@dataclasses.dataclass(frozen=True)
class Planned:
  """Runs that are to share their steps.

  Attributes:
    configs: run directory -> resolved config, whose data and steps are those of the first.
    name: of the runs, for what is said of them.
    mesh: of one of them.
    trainer_of: what initialises and restores a run.
    facts: for env.json, beside what it always has.
  """

  configs: Mapping[Path, Config]
  name: str
  mesh: Mesh
  trainer_of: Callable[[Config], Trainer]
  facts: Mapping[str, Any]

  @property
  def workdirs(self) -> list[Path]:
    """The run directories."""
    return list(self.configs)

  @property
  def first(self) -> Config:
    """The first run's config."""
    return next(iter(self.configs.values()))


@dataclasses.dataclass(frozen=True)
class Begun:
  """Runs that are locked, described on disk, and may step.

  Attributes:
    batches, logs, checkpoints, states: one a run.
    done: the steps that they have behind them.
  """

  batches: list[Shuffled]
  logs: list[writers.RunLog]
  checkpoints: list[Checkpoints]
  states: list[State]
  done: int


def check(workdir: Path, config: Config) -> bool:
  """Checks what a run directory can say before anything is read; returns whether the run is over.

  Raises:
    UserError: it cannot hold this run.
  """
  provenance.check_workdir(workdir, config)
  provenance.check_user_metrics(workdir, config)
  return (workdir / run_directory.DONE).exists()


def begin(planned: Planned, held: contextlib.ExitStack, log: Log) -> Begun:
  """Prepares runs, none of which is over, up to their first step.

  Args:
    planned: the runs; see `check`, which comes before.
    held: takes the locks and the checkpoints, to be let go of at the end.
    log: takes lines.

  Raises:
    UserError: a writer that is not installed, no parameters to start from, data that does not fit
      the config or that the run did not begin with, processes that do not agree, a full disk.
      Nothing has been written then.
  """
  writers.check_available(planned.first.train)
  resumes = checkpoint.has_checkpoint(planned.workdirs[0])
  if not resumes:
    for config in planned.configs.values():
      init_from.check(config)
  corpus = prepare(planned.first.data, log)
  batches = [make_batches(corpus, config.data, config.train,
                          local_rows(planned.mesh, config.train.batch_size))
             for config in planned.configs.values()]
  with jax.set_mesh(planned.mesh):
    described = _described(planned, corpus)
    # Before anything is compiled, so that parameters that do not fit are known at once.
    sources = [None if resumes else init_from.load(
        config, planned.trainer_of(config).network,
        planned.trainer_of(config).shardings["params"], log)
        for config in planned.configs.values()]
    workdirs = planned.workdirs
    provenance.announce_disk(
        workdirs[0] if len(workdirs) == 1 else workdirs[0].parent,
        planned.trainer_of(planned.first), checkpoint.kept_steps(planned.first.train), log,
        len(workdirs))
    return _open(planned, batches, corpus, described, sources, held, log)


def _described(planned: Planned, corpus: Described) -> dict[str, Any]:
  """Describes the runs for env.json, once the runs and the processes agree with it."""
  config = planned.first
  described = environment.describe(
      config, planned.mesh, corpus, planned.trainer_of(config).network)
  described.update(planned.facts)
  for workdir in planned.workdirs:
    provenance.check_corpus(workdir, described)
  distributed.check_agreement({
      "config": config_lib.to_dict(config), "corpus": corpus.corpus_sha256,
      "tokenizer": corpus.tokenizer_sha256, "of_jax": described["git"]["commit"]})
  return described


def _open(planned: Planned, batches: list[Shuffled], corpus: Described, described: dict[str, Any],
          sources: Sequence[InitialParameters | None], held: contextlib.ExitStack, log: Log
          ) -> Begun:
  """Locks and writes the run directories, and makes or restores the states."""
  for workdir, config in planned.configs.items():
    workdir.mkdir(parents=True, exist_ok=True)
    if distributed.is_writer():
      held.enter_context(run_directory.locked(workdir))
    # First of all, since a folder with files but without it is not taken for a run.
    provenance.write_config(workdir, config, planned.trainer_of(config).network)
  saved = [held.enter_context(Checkpoints(workdir)) for workdir in planned.workdirs]
  done = saved[0].latest
  if done is not None:
    log(f"{planned.name}: resumes after step {done} of {planned.first.train.steps}")
  states, logs = [], []
  for (workdir, config), source, checkpoints in zip(planned.configs.items(), sources, saved):
    own = {**described, "init_from": source.record} if source else described
    provenance.write_environment(workdir, own, corpus, done)
    open_records(workdir, done or 0)
    if distributed.is_writer():
      remote.put_back(workdir)
    trainer = planned.trainer_of(config)
    if done is None:
      states.append(initial_state(config, trainer, source))
      checkpoints.save(states[-1], 0)
    else:
      states.append(cast(State, checkpoints.restore(
          jax.eval_shape(trainer.init, jax.random.key(0)), trainer.shardings, done)))
    logs.append(writers.RunLog(
        workdir, config, done or 0, environment.peak_flops(),
        task_of(config.model.kind).flops_per_token(config, trainer.network)))
  return Begun(batches, logs, saved, states, done or 0)


def initial_state(config: Config, trainer: Trainer, source: InitialParameters | None) -> State:
  """Makes the state before the first step: drawn, or of the parameters that `source` has."""
  key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
  state: State = trainer.init(key, source.params) if source else trainer.init(key)
  return state


def training_key(config: Config) -> jax.Array:
  """Makes the key from which every step draws, a function of the seed."""
  return jax.random.fold_in(jax.random.key(config.train.seed), 1)


def open_records(workdir: Path, start: int) -> None:
  """Drops what a killed process logged after the checkpoint that a run goes on from."""
  if distributed.is_writer():
    for name in (run_directory.METRICS, run_directory.TIMING):
      run_directory.keep_lines_until(workdir / name, start)
