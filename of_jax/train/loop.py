"""The run loop: one config, one run directory, from nothing or from its last checkpoint."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from of_jax import config as config_lib
from of_jax import run_directory
from of_jax.config import Config
from of_jax.data.corpora import prepare
from of_jax.data.loader import Shuffled, make_batches
from of_jax.errors import Preempted, UserError
from of_jax.train import checkpoint, distributed, environment, provenance, writers
from of_jax.train.checkpoint import Checkpoints
from of_jax.train.costly import Costly
from of_jax.train.distributed import Interruption
from of_jax.train.profile import Profile
from of_jax.train.progress import TrainingProgress
from of_jax.train.sharding import local_rows, make_mesh, place_batch
from of_jax.train.step import State, Trainer, make_trainer

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
    workdir: the run directory; made if it is not there.
    log: takes the lines that tell what happens.
    profile: first and last step to trace, see of_jax.train.profile.

  Raises:
    UserError: a directory that holds another config's run, data that does not fit the config,
      a mesh that does not fit the devices, processes that do not agree. Nothing has been written
      then.
    Preempted: SIGTERM came to this or another process; the state is saved.
  """
  with Interruption() as interruption:
    _train(config, workdir, log if distributed.is_writer() else lambda line: None, interruption,
           profile)


def _train(config: Config, workdir: str | Path, log: Log, interruption: Interruption,
           profile: tuple[int, int] | None) -> None:
  if "://" in str(workdir):
    raise UserError(f"--workdir={workdir}: run directories are local so far; give a folder")
  workdir = Path(workdir)
  provenance.check_workdir(workdir, config)
  provenance.check_user_metrics(workdir, config)
  if (workdir / run_directory.DONE).exists():
    log(f"{workdir}: finished before, nothing to do")
    return
  writers.check_available(config.train)
  mesh = make_mesh(config)
  corpus = prepare(config.data, log)
  batches = make_batches(
      corpus, config.data, config.train, local_rows(mesh, config.train.batch_size))
  kept = checkpoint.kept_steps(config.train)
  with jax.set_mesh(mesh):
    # Runs that differ in their seed alone share what is compiled.
    seedless = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=0))
    trainer = make_trainer(seedless, mesh)
    described = environment.describe(config, mesh, corpus, trainer.network)
    provenance.check_corpus(workdir, described)
    distributed.check_agreement({
        "config": config_lib.to_dict(config), "corpus": corpus.corpus_sha256,
        "tokenizer": corpus.tokenizer_sha256, "of_jax": described["git"]["commit"]})
    state = _initial_state(config, trainer)
    provenance.announce_disk(workdir, trainer, kept, log)
    workdir.mkdir(parents=True, exist_ok=True)
    with run_directory.locked(workdir) if distributed.is_writer() else contextlib.nullcontext():
      # First of all, since a folder with files but without it is not taken for a run.
      provenance.write_config(workdir, config, trainer.network)
      with Checkpoints(workdir) as checkpoints:
        start = checkpoints.latest
        provenance.write_environment(workdir, described, corpus, start)
        if distributed.is_writer():
          for name in (run_directory.METRICS, run_directory.TIMING):
            run_directory.keep_lines_until(workdir / name, start or 0)
        if start is None:
          checkpoints.save(state, 0)
        else:
          log(f"{workdir}: resumes after step {start} of {config.train.steps}")
          state = checkpoints.restore(jax.eval_shape(lambda: state), trainer.shardings, start)
        _run(config, workdir, trainer, mesh, batches, checkpoints, state, start or 0, kept,
             interruption, Profile(workdir, profile), log)
      distributed.wait_for_all("trained")
      if distributed.is_writer():
        (workdir / run_directory.DONE).touch()
  log(f"{workdir}: finished")


def _initial_state(config: Config, trainer: Trainer) -> State:
  # Loaded before anything is compiled, so that a source that does not fit is known at once.
  loaded = checkpoint.load_parameters(
      config.train.init_from, trainer.network.shapes, trainer.shardings["params"]
  ) if config.train.init_from else None
  state: State = trainer.init(jax.random.fold_in(jax.random.key(config.train.seed), 0))
  return state if loaded is None else {**state, "params": loaded}


def _run(config: Config, workdir: Path, trainer: Trainer, mesh: jax.sharding.Mesh,
         batches: Shuffled, checkpoints: Checkpoints, state: State, start: int, kept: list[int],
         interruption: Interruption, profile: Profile, say: Log) -> None:
  """Steps `start` + 1 to the last, with what is logged, evaluated and kept on the way."""
  steps, every = config.train, config.telemetry.every
  last = steps.steps
  key = jax.random.fold_in(jax.random.key(steps.seed), 1)
  log = writers.RunLog(workdir, config, start, environment.peak_flops(),
                       environment.flops_per_token(config, trainer.network))
  rows = steps.batch_size
  evaluation = [place_batch(mesh, batch, rows) for batch in batches.eval_batches()]
  costly = Costly(config, trainer, evaluation[0])
  # A step's metrics are fetched after the next step is dispatched, so that the devices never wait.
  late: tuple[int, Any] | None = None
  unit = "images" if config.model.kind == "residual_mlp" else "tokens"
  with log, profile, TrainingProgress(
      workdir.name, start, last, unit, distributed.is_writer()) as progress:
    for step in range(start + 1, last + 1):
      batch = place_batch(mesh, batches.train_batch(step - 1), rows)
      logged = step in (1, last) or step % steps.log_every == 0
      measured = logged and (step in (1, last) or step % every == 0)
      due = costly.due(step) if logged else ()
      if due:
        if late:
          progress.update(*log.train(*late))
          late = None
        costly.before_step(due, state, batch, key)
      profile.before_step(step, state)
      state, metrics = (trainer.step_measured if measured else trainer.step)(state, batch, key)
      profile.after_step(step, state)
      if due:
        metrics = costly.after_step(due, state, metrics)
        log.leave_out(costly.spent())
      if late:
        progress.update(*log.train(*late))
      late = (step, metrics) if logged else None
      evaluated = step == last or step % steps.eval_every == 0
      preempted = interruption.stops_at(step) and step != last
      if not (evaluated or preempted or step in kept):
        continue
      if late:
        progress.update(*log.train(*late))
        late = None
      if evaluated:
        progress.evaluated(step, log.evaluation(step, _evaluate(trainer, state, evaluation)))
      if preempted or step in kept:
        # What a checkpoint follows must be on disk before it: a resumed run keeps those lines.
        log.flush()
        checkpoints.save(state, step)
      if preempted:
        checkpoints.wait()
        raise Preempted(f"{workdir}: told to stop; saved step {step} of {last}")
      log.restart_clock()
    checkpoints.wait()
  costly.report(say)


def _evaluate(trainer: Trainer, state: State, batches: list[Any]) -> Any:
  total = trainer.evaluate(state["params"], batches[0])
  for batch in batches[1:]:
    total = trainer.add(total, trainer.evaluate(state["params"], batch))
  return trainer.finish(total)
