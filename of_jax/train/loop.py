"""The run loop: one config, one run directory, from nothing or from its last checkpoint."""

import contextlib
from pathlib import Path
from typing import Protocol

import jax

from of_jax.config import Config
from of_jax.config.fields import replaced
from of_jax.config.kinds import kind_of
from of_jax.data.loader import Shuffled
from of_jax.storage import checkpoint, remote
from of_jax.storage.record import is_evaluated, is_logged
from of_jax.train import distributed, startup
from of_jax.train.distributed import Interruption
from of_jax.train.divergence import Divergence, RollBack, watched
from of_jax.train.failures import saying_what_is_saved
from of_jax.train.outputs import RunOutputs
from of_jax.train.profile import Profile
from of_jax.train.progress import TrainingProgress, unfailing
from of_jax.train.replay import Replay
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.side_programs import SidePrograms
from of_jax.train.trainer import Trainer, make_trainer
from of_jax.train.types import Batch, Log, Metrics, State


def train(config: Config, workdir: str | Path, log: Log = print,
          profile: tuple[int, int] | None = None, strict_resume: bool = False) -> None:
  """Trains a run to its end, or resumes it; a finished run returns at once.

  The numbers in metrics.jsonl and the checkpoints are functions of the config, the corpus and
  the mesh: killed at any moment and started again, the run ends in the same bits. A checkpoint
  or a record that is damaged is named and set aside, and the run goes on from an older one.

  Several processes (see of_jax.train.distributed) call this alike. Each reads its own rows of a
  batch, process 0 alone writes and talks; checkpoints are written by all.

  Args:
    config: resolved.
    workdir: the run directory, or its URL; made if it is not there.
    log: takes the lines that tell what happens.
    profile: first and last step to trace, see of_jax.train.profile.
    strict_resume: refuses to go on where anything is damaged, see of_jax.train.resume.

  Raises:
    UserError: a directory that holds another config's run, data that does not fit the config,
      a mesh that does not fit the devices, processes that do not agree, no checkpoint that is
      whole: nothing has been written then. A file that cannot be written, as on a full disk.
    Preempted: SIGTERM came to this or another process, or, as an Interrupted, SIGINT; the state
      is saved.
  """
  writes = distributed.is_writer()
  with Interruption() as interruption, remote.working(workdir, writes) as local:

    def say(line: str) -> None:
      if writes:
        unfailing(log)(line.replace(str(local), str(workdir)))

    with saying_what_is_saved([local]):
      _train(config, local, say, interruption, profile, strict_resume)


def _train(config: Config, workdir: Path, log: Log, interruption: Interruption,
           profile: tuple[int, int] | None, strict: bool) -> None:
  if startup.check(workdir, config, log, strict):
    log(f"{workdir}: finished before, nothing to do")
    return
  mesh = make_mesh(config)
  # Runs that differ in their seed alone share what is compiled.
  trainer = make_trainer(replaced(config, {"train.seed": 0}), mesh)
  planned = startup.Planned(
      {workdir: config}, str(workdir), mesh, lambda config: trainer, {}, strict)
  back: RollBack | None = None
  while True:
    try:
      _run(planned, trainer, interruption, Profile(workdir, profile), back, log)
      break
    except RollBack as error:
      back = error
  log(f"{workdir}: finished")


def _run(planned: startup.Planned, trainer: Trainer, interruption: Interruption, profile: Profile,
         back: RollBack | None, log: Log) -> None:
  """Runs from the newest checkpoint to the end, or until the run is to go `back` to one."""
  (workdir, config), = planned.configs.items()
  key, mesh = startup.training_key(config), planned.mesh
  with contextlib.ExitStack() as held:
    begun = startup.begin(planned, held, log)
    kept, batches = back.then(begun.done) if back else begun.divergence[0], begun.batches[0]
    moved = kept.get("moved", 0)
    divergence = Divergence(config.train.on_divergence, [
        Replay(config, workdir, mesh, batches, key, moved)], [kept], log)
    outputs = RunOutputs([workdir], begun.logs, begun.checkpoints, begun.diverged,
                         lambda tree: [tree], log, divergence)
    with jax.set_mesh(mesh):
      run_steps(config, workdir.name, trainer, Feed(mesh, batches, config, moved), key, outputs,
                begun.states.pop(), begun.done, interruption, profile, log)


class Feed:
  """A run's batches on its mesh."""

  def __init__(self, mesh: jax.sharding.Mesh, batches: Shuffled, config: Config, moved: int = 0):
    """`moved`: how many batches behind its own each step reads, after rollbacks."""
    self._mesh, self._batches, self._rows = mesh, batches, config.train.batch_size
    self._moved = moved

  def train(self, step: int) -> Batch:
    """Gives the batch of step `step`, from 1."""
    return place_batch(self._mesh, self._batches.train_batch(step - 1 + self._moved), self._rows)

  def evaluation(self) -> list[Batch]:
    """Gives the evaluation set."""
    return [place_batch(self._mesh, batch, self._rows) for batch in self._batches.eval_batches()]


class Feeding(Protocol):
  """Gives the batches of the steps and of the evaluations, of one run or of several together."""

  def train(self, step: int) -> Batch:
    ...

  def evaluation(self) -> list[Batch]:
    ...


class _Late:
  """Writes a step's metrics after the next step is dispatched, so that the devices never wait."""

  def __init__(self, outputs: RunOutputs, progress: TrainingProgress):
    self._outputs, self._progress = outputs, progress
    self._held: tuple[int, Metrics] | None = None
    self._seen: list[tuple[int, Metrics]] = []

  def hold(self, step: int, metrics: Metrics, logged: bool) -> None:
    """Keeps what `write` fetches and looks at, and, if it is `logged`, writes and shows."""
    self._seen.append((step, watched(metrics)))
    if logged:
      self._held = (step, metrics)

  def write(self, all_seen: bool = False) -> None:
    """Waits for what is held, if anything is, and, for `all_seen`, for steps without a line."""
    if self._held:
      shown = self._outputs.train(*self._held)
      self._progress.update(*shown, kurtosis=self._outputs.kurtosis)
    if self._held or all_seen:
      seen, self._seen, self._held = self._seen, [], None
      self._outputs.see(seen)


def run_steps(config: Config, name: str, trainer: Trainer, feed: Feeding, key: jax.Array,
              outputs: RunOutputs, state: State, done: int, interruption: Interruption,
              profile: Profile, say: Log) -> None:
  """Runs steps `done` + 1 to the last, with what is logged, evaluated and kept on the way.

  State, batches, key and metrics are of one run, or of several (see of_jax.sweep.trainer) of
  which `config` is any: the outputs tell them apart.
  """
  steps, every, kept = config.train, config.telemetry.every, checkpoint.kept_steps(config.train)
  last, unit = steps.steps, kind_of(config.model.kind).unit
  evaluation = feed.evaluation()
  side_programs = SidePrograms(config, trainer, evaluation[0])
  outputs.restart_clock()
  with outputs, profile, TrainingProgress(
      name, done, last, unit, distributed.is_writer()) as progress:
    late = _Late(outputs, progress)
    # Those that were killed between their last save and their end.
    outputs.end_diverged(done)
    for step in range(done + 1, 0 if outputs.over else last + 1):
      batch = feed.train(step)
      logged = is_logged(steps, step)
      measured = logged and (step in (1, last) or step % every == 0)
      due = side_programs.due(step) if logged else ()
      if due:
        late.write()
        side_programs.before_step(due, state, batch, key)
      profile.before_step(step, state)
      state, metrics = (trainer.step_measured if measured else trainer.step)(state, batch, key)
      profile.after_step(step, state)
      if due:
        metrics = side_programs.after_step(due, state, metrics)
        outputs.leave_out(side_programs.spent())
      late.write()
      late.hold(step, metrics, logged)
      evaluated = is_evaluated(steps, step)
      preempted = step != last and interruption.stops_at(step)
      saved = preempted or step in kept
      if not (evaluated or saved or outputs.diverged):
        continue
      late.write(all_seen=True)
      if evaluated or outputs.diverged:
        progress.evaluated(step, outputs.evaluation(
            step, _evaluate(trainer, state, evaluation), evaluated))
      if saved or outputs.diverged:
        outputs.save(state, step, saved)
      outputs.end_diverged(step)
      if outputs.over:
        break
      if preempted:
        outputs.wait()
        raise interruption.ended(f"{name}: told to stop; saved step {step} of {last}")
      outputs.restart_clock()
    outputs.finish()
  side_programs.report(say)


def _evaluate(trainer: Trainer, state: State, batches: list[Batch]) -> Metrics:
  total = trainer.evaluate(state["params"], batches[0])
  for batch in batches[1:]:
    total = trainer.add(total, trainer.evaluate(state["params"], batch))
  metrics: Metrics = trainer.finish(total)
  return metrics
