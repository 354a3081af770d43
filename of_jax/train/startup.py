"""The start of runs, alone or together: what is checked, read and written before the first step.

The order is that a mistake is found before time is spent and before anything is written: the run
directories, the corpus, the parameters to start from, the disk; then locks, config.json,
checkpoints, env.json, the logs, and the state.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from of_jax import config as config_lib
from of_jax.config import Config, traits
from of_jax.config.kinds import kind_of
from of_jax.data.corpora import prepare
from of_jax.data.folder import Described
from of_jax.data.loader import Shuffled, make_batches
from of_jax.objectives.tasks import task_of
from of_jax.storage import checkpoint, record, remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import distributed, environment, init_from, memory, provenance, writers
from of_jax.train.finished import is_over
from of_jax.train.init_from import InitialParameters
from of_jax.train.resume import Resumed, newest_whole
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
    strict: refuse to go on from another checkpoint than the newest, see of_jax.train.resume.
    resumed: where runs go on that were locked and restored before.
  """

  configs: Mapping[Path, Config]
  name: str
  mesh: Mesh
  trainer_of: Callable[[Config], Trainer]
  facts: Mapping[str, Any]
  strict: bool = False
  resumed: Mapping[Path, Resumed | None] = dataclasses.field(default_factory=dict)

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
    diverged: whether each was over at that step, and only lacks its DONE.
    divergence: what each one's checkpoint keeps of of_jax.train.divergence.
    done: the steps that they have behind them.
  """

  batches: list[Shuffled]
  logs: list[writers.RunLog]
  checkpoints: list[Checkpoints]
  states: list[State]
  diverged: list[bool]
  divergence: list[dict[str, int]]
  done: int


def check(workdir: Path, config: Config, log: Log, strict: bool = False) -> bool:
  """Checks what a run directory can say before data is read; returns whether the run is over.

  Raises:
    UserError: it cannot hold this run, or, for `strict`, what says that it is over is wrong.
  """
  provenance.check_workdir(workdir, config)
  provenance.check_user_code(workdir, config)
  return is_over(workdir, config, log, strict)


def _say_what_is_not_causal(config: Config, log: Log) -> None:
  model = config.model
  if kind_of(model.kind).inputs == "tokens" and not traits.mlp(model.mlp).causal:
    log(f"model.mlp={model.mlp} reads later tokens of a row, in evaluation too: no loss of it is "
        "that of a language model")


def _say_what_is_unfused(config: Config, log: Log) -> None:
  attention = environment.attention_on_gpu(config)
  if attention is not None and attention.startswith("unfused"):
    log(f"attention is {attention}: it holds and moves more than the rest of the step may")


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
  trainer = planned.trainer_of(planned.first)
  memory.check_devices(jax.eval_shape(trainer.init, jax.random.key(0)), trainer.shardings,
                       len(planned.configs))
  _say_what_is_not_causal(planned.first, log)
  _say_what_is_unfused(planned.first, log)
  resumes = checkpoint.has_begun(planned.workdirs[0])
  if not resumes:
    for config in planned.configs.values():
      init_from.check(config)
  corpus = prepare(planned.first.data, log)
  batches = [make_batches(corpus, config.data, config.train,
                          local_rows(planned.mesh, config.train.batch_size))
             for config in planned.configs.values()]
  with jax.set_mesh(planned.mesh):
    described = _described(planned, corpus, log)
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


def _described(planned: Planned, corpus: Described, log: Log) -> dict[str, Any]:
  """Describes the runs for env.json, once the runs and the processes agree with it."""
  config = planned.first
  described = environment.describe(
      config, planned.mesh, corpus, planned.trainer_of(config).network)
  described.update(planned.facts)
  own = provenance.hashes_of_user_code(config)
  if own:
    described["user_code"] = own
  for workdir in planned.workdirs:
    provenance.check_environment(workdir, described, log)
  distributed.check_agreement({
      "config": config_lib.to_dict(config), "corpus": corpus.corpus_sha256,
      "tokenizer": corpus.tokenizer_sha256, "of_jax": described["git"]["commit"],
      "user_code": own, "--strict_resume": planned.strict})
  distributed.check_agreement({"checkpoints in the run directory": [
      checkpoint.has_begun(workdir) for workdir in planned.workdirs]}, provenance.SHARE)
  return described


def _open(planned: Planned, batches: list[Shuffled], corpus: Described, described: dict[str, Any],
          sources: Sequence[InitialParameters | None], held: contextlib.ExitStack, log: Log
          ) -> Begun:
  """Locks the run directories, makes or restores the states, and writes what describes them."""
  resumed = [_resumed(planned, workdir, held, log) for workdir in planned.workdirs]
  done = resumed[0].step if resumed[0] else None
  if done is not None:
    log(f"{planned.name}: resumes after step {done} of {planned.first.train.steps}")
  states, logs, saved = [], [], []
  for (workdir, config), source, found in zip(planned.configs.items(), sources, resumed):
    trainer = planned.trainer_of(config)
    # First of all, since a folder with files but without it is not taken for a run.
    provenance.write_config(workdir, config, trainer.network)
    provenance.check_shared(workdir)
    saved.append(held.enter_context(Checkpoints(workdir, config=config)))
    own = {**described, "init_from": source.record} if source else described
    provenance.write_environment(workdir, own, corpus, done)
    if found is None:
      open_records(workdir)
    if distributed.is_writer():
      remote.put_back(workdir)
    if found is None:
      states.append(initial_state(config, trainer, source))
      saved[-1].save(states[-1], 0, {"metrics": record.empty(), "diverged": False})
    else:
      states.append(found.state)
    logs.append(writers.RunLog(
        workdir, config, done or 0, environment.peak_flops(),
        task_of(config.model.kind).flops_per_token(config, trainer.network), log))
  return Begun(batches, logs, saved, states,
               [found is not None and found.diverged for found in resumed],
               [found.divergence if found else {} for found in resumed], done or 0)


def _resumed(planned: Planned, workdir: Path, held: contextlib.ExitStack, log: Log
             ) -> Resumed | None:
  """Locks a run directory and restores its newest whole checkpoint, if it has one."""
  if workdir in planned.resumed:
    return planned.resumed[workdir]
  config = planned.configs[workdir]
  lock(workdir, held)
  return newest_whole(workdir, config, planned.trainer_of(config), log, planned.strict)


def lock(workdir: Path, held: contextlib.ExitStack) -> None:
  """Makes a run directory and keeps other processes from it until `held` lets go."""
  workdir.mkdir(parents=True, exist_ok=True)
  if distributed.is_writer():
    held.enter_context(run_directory.locked(workdir))


def initial_state(config: Config, trainer: Trainer, source: InitialParameters | None) -> State:
  """Makes the state before the first step: drawn, or of the parameters that `source` has."""
  key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
  state: State = trainer.init(key, source.params) if source else trainer.init(key)
  return state


def training_key(config: Config) -> jax.Array:
  """Makes the key from which every step draws, a function of the seed."""
  return jax.random.fold_in(jax.random.key(config.train.seed), 1)


def open_records(workdir: Path) -> None:
  """Drops what a process logged that was killed before its first checkpoint."""
  if distributed.is_writer():
    for name in (run_directory.METRICS, run_directory.TIMING):
      record.cut(workdir / name, 0)
