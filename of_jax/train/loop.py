"""The run loop: one config, one run directory, from nothing or from its last checkpoint."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from of_jax import config as config_lib
from of_jax.config import Config
from of_jax.config.fields import replaced
from of_jax.config.kinds import kind_of
from of_jax.data.corpora import prepare
from of_jax.data.loader import Shuffled, make_batches
from of_jax.errors import Preempted
from of_jax.objectives.tasks import task_of
from of_jax.storage import checkpoint, remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import distributed, environment, init_from, provenance, writers
from of_jax.train.distributed import Interruption
from of_jax.train.outputs import Recorder
from of_jax.train.profile import Profile
from of_jax.train.progress import TrainingProgress
from of_jax.train.sharding import local_rows, make_mesh, place_batch
from of_jax.train.side_programs import Costly
from of_jax.train.step import Batch, State, Trainer, make_trainer

Log = Callable[[str], None]


def train(config: Config, workdir: str | Path, log: Log = print,
          profile: tuple[int, int] | None = None) -> None:
  """Trains a run to its end, or resumes it; a finished run returns at once.

  The numbers in metrics.jsonl and the checkpoints are functions of the config, the corpus and
  the mesh: killed at any moment and started again, the run ends in the same bits.

  Several processes (see of_jax.train.distributed) call this alike. Each reads its own rows of a
  batch, process 0 alone writes and talks; checkpoints are written by all.

  Args:
    config: resolved.
    workdir: the run directory, or its URL; made if it is not there.
    log: takes the lines that tell what happens.
    profile: first and last step to trace, see of_jax.train.profile.

  Raises:
    UserError: a directory that holds another config's run, data that does not fit the config,
      a mesh that does not fit the devices, processes that do not agree. Nothing has been written
      then.
    Preempted: SIGTERM came to this or another process; the state is saved.
  """
  writes = distributed.is_writer()
  with Interruption() as interruption, remote.working(workdir, writes) as local:

    def say(line: str) -> None:
      if writes:
        log(line.replace(str(local), str(workdir)))

    _train(config, local, say, interruption, profile)


def _train(config: Config, workdir: Path, log: Log, interruption: Interruption,
           profile: tuple[int, int] | None) -> None:
  provenance.check_workdir(workdir, config)
  provenance.check_user_metrics(workdir, config)
  if (workdir / run_directory.DONE).exists():
    log(f"{workdir}: finished before, nothing to do")
    return
  writers.check_available(config.train)
  resumes = checkpoint.has_checkpoint(workdir)
  if not resumes:
    init_from.check(config)
  mesh = make_mesh(config)
  corpus = prepare(config.data, log)
  kept = checkpoint.kept_steps(config.train)
  with jax.set_mesh(mesh):
    # Runs that differ in their seed alone share what is compiled.
    trainer = make_trainer(replaced(config, {"train.seed": 0}), mesh)
    feed = Feed(mesh, make_batches(corpus, config.data, config.train,
                                   local_rows(mesh, config.train.batch_size)), config)
    described = environment.describe(config, mesh, corpus, trainer.network)
    provenance.check_corpus(workdir, described)
    distributed.check_agreement({
        "config": config_lib.to_dict(config), "corpus": corpus.corpus_sha256,
        "tokenizer": corpus.tokenizer_sha256, "of_jax": described["git"]["commit"]})
    # Before anything is compiled, so that parameters that do not fit are known at once.
    source = None if resumes else init_from.load(
        config, trainer.network, trainer.shardings["params"], log)
    if source is not None:
      described["init_from"] = source.record
    provenance.announce_disk(workdir, trainer, kept, log)
    workdir.mkdir(parents=True, exist_ok=True)
    with run_directory.locked(workdir) if distributed.is_writer() else contextlib.nullcontext():
      # First of all, since a folder with files but without it is not taken for a run.
      provenance.write_config(workdir, config, trainer.network)
      with Checkpoints(workdir) as checkpoints:
        done = checkpoints.latest
        provenance.write_environment(workdir, described, corpus, done)
        open_records(workdir, done or 0)
        if distributed.is_writer():
          remote.put_back(workdir)
        if done is None:
          state = initial_state(config, trainer, source)
          checkpoints.save(state, 0)
        else:
          log(f"{workdir}: resumes after step {done} of {config.train.steps}")
          state = checkpoints.restore(
              jax.eval_shape(trainer.init, jax.random.key(0)), trainer.shardings, done)
        recorder = Recorder(
            [workdir], [run_log(workdir, config, done or 0, trainer)], [checkpoints],
            lambda tree: [tree], log)
        run_steps(config, workdir.name, trainer, feed, training_key(config), recorder, state,
                  done or 0, interruption, Profile(workdir, profile), log)
  log(f"{workdir}: finished")


class Feed:
  """A run's batches on its mesh."""

  def __init__(self, mesh: jax.sharding.Mesh, batches: Shuffled, config: Config):
    self._mesh, self._batches, self._rows = mesh, batches, config.train.batch_size

  def train(self, step: int) -> Batch:
    """What step `step`, from 1, trains on."""
    return place_batch(self._mesh, self._batches.train_batch(step - 1), self._rows)

  def evaluation(self) -> list[Batch]:
    """The evaluation set."""
    return [place_batch(self._mesh, batch, self._rows) for batch in self._batches.eval_batches()]


def initial_state(config: Config, trainer: Trainer, source: init_from.InitialParameters | None
                  ) -> State:
  """The state before the first step: drawn, or of the parameters that `source` has."""
  key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
  state: State = trainer.init(key, source.params) if source else trainer.init(key)
  return state


def training_key(config: Config) -> jax.Array:
  """Of what is random in the steps."""
  return jax.random.fold_in(jax.random.key(config.train.seed), 1)


def open_records(workdir: Path, start: int) -> None:
  """Drops what a killed process logged after the checkpoint that a run goes on from."""
  if distributed.is_writer():
    for name in (run_directory.METRICS, run_directory.TIMING):
      run_directory.keep_lines_until(workdir / name, start)


def run_log(workdir: Path, config: Config, start: int, trainer: Trainer) -> writers.RunLog:
  """The log of a run from a step on."""
  return writers.RunLog(workdir, config, start, environment.peak_flops(),
                        task_of(config.model.kind).flops_per_token(config, trainer.network))


class Feeding(Protocol):
  """As of `Feed`."""

  def train(self, step: int) -> Batch:
    ...

  def evaluation(self) -> list[Batch]:
    ...


def run_steps(config: Config, name: str, trainer: Trainer, feed: Feeding, key: jax.Array,
              recorder: Recorder, state: State, done: int, interruption: Interruption,
              profile: Profile, say: Log) -> None:
  """Steps `done` + 1 to the last, with what is logged, evaluated and kept on the way.

  State, batches, key and metrics are of one run, or of several (see of_jax.sweep.trainer) of
  which `config` is any: the recorder tells them apart.
  """
  steps, every, kept = config.train, config.telemetry.every, checkpoint.kept_steps(config.train)
  last = steps.steps
  evaluation = feed.evaluation()
  costly = Costly(config, trainer, evaluation[0])
  # A step's metrics are fetched after the next step is dispatched, so that the devices never wait.
  late: tuple[int, Any] | None = None
  unit = kind_of(config.model.kind).unit
  recorder.restart_clock()
  with recorder, profile, TrainingProgress(
      name, done, last, unit, distributed.is_writer()) as progress:
    for step in range(done + 1, last + 1):
      batch = feed.train(step)
      logged = step in (1, last) or step % steps.log_every == 0
      measured = logged and (step in (1, last) or step % every == 0)
      due = costly.due(step) if logged else ()
      if due:
        if late:
          progress.update(*recorder.train(*late))
          late = None
        costly.before_step(due, state, batch, key)
      profile.before_step(step, state)
      state, metrics = (trainer.step_measured if measured else trainer.step)(state, batch, key)
      profile.after_step(step, state)
      if due:
        metrics = costly.after_step(due, state, metrics)
        recorder.leave_out(costly.spent())
      if late:
        progress.update(*recorder.train(*late))
      late = (step, metrics) if logged else None
      evaluated = step == last or step % steps.eval_every == 0
      preempted = interruption.stops_at(step) and step != last
      saved = preempted or step in kept
      if not (evaluated or saved or recorder.diverged):
        continue
      if late:
        progress.update(*recorder.train(*late))
        late = None
      if evaluated or recorder.diverged:
        progress.evaluated(step, recorder.evaluation(
            step, _evaluate(trainer, state, evaluation), evaluated))
      if saved or recorder.diverged:
        recorder.save(state, step, saved)
      recorder.end_diverged(step)
      if recorder.over:
        break
      if preempted:
        recorder.wait()
        raise Preempted(f"{name}: told to stop; saved step {step} of {last}")
      recorder.restart_clock()
    recorder.finish()
  costly.report(say)


def _evaluate(trainer: Trainer, state: State, batches: list[Any]) -> Any:
  total = trainer.evaluate(state["params"], batches[0])
  for batch in batches[1:]:
    total = trainer.add(total, trainer.evaluate(state["params"], batch))
  return trainer.finish(total)
