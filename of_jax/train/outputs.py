"""Outputs of the runs that one loop trains: of one, or of several that share its steps."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from of_jax.storage import remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.storage.record import Record
from of_jax.train import distributed
from of_jax.train.divergence import Divergence
from of_jax.train.guard import STOP
from of_jax.train.types import Log, Metrics, State
from of_jax.train.writers import Fetched, RunLog

# A tree that holds all runs -> one for each.
Split = Callable[[Any], Sequence[Any]]


class RunOutputs:
  """The logs and checkpoints of the runs that one loop trains; `with` closes the logs.

  Of each run it has one of_jax.train.writers.RunLog, which writes its metrics and timing; this says
  which runs a call is for. The record of a whole study is of_jax.claims.study_record's.

  A run whose loss is not finite is over: nothing that it could still do has a number. It is
  evaluated and saved where that is noticed, its checkpoint says so, and is then finished. The
  others go on.
  """

  def __init__(self, workdirs: Sequence[Path], logs: Sequence[RunLog],
               checkpoints: Sequence[Checkpoints], diverged: Sequence[bool], split: Split,
               say: Log, divergence: Divergence | None = None):
    """`diverged` says which runs were over when they were saved, and only lack their DONE;
    `divergence` what is done where a step is not finite, by default that the run stops."""
    self._divergence = divergence or Divergence(STOP, (), [{}] * len(workdirs), say)
    self._workdirs, self._logs, self._checkpoints = workdirs, logs, checkpoints
    self._split, self._say = split, say
    self._records = [Record(workdir / run_directory.METRICS) for workdir in workdirs]
    self._going = list(range(len(workdirs)))
    self._diverged = [i for i in self._going if diverged[i]]

  def __enter__(self) -> Self:
    self._open = contextlib.ExitStack()
    for log in self._logs:
      self._open.enter_context(log)
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
               trace: TracebackType | None) -> None:
    self._open.close()

  @property
  def diverged(self) -> bool:
    """Whether a run that goes on has had a loss that is not finite."""
    return bool(self._diverged)

  @property
  def over(self) -> bool:
    """Whether no run goes on."""
    return not self._going

  @property
  def kurtosis(self) -> float | None:
    """The stream's largest kurtosis over layers and runs, as measured last; None if it is not."""
    return max((log.kurtosis for log in self._logs if log.kurtosis is not None), default=None)

  def train(self, step: int, metrics: Metrics) -> tuple[int, float, float, float | None]:
    """Writes a step; returns it, the runs' mean loss, and their tokens a second and MFU together.

    A run's MFU is its share of the peak of all devices, or None where that is not known.
    """
    parts = self._split(metrics)
    written = [(i, *self._logs[i].train(step, parts[i])[1:]) for i in self._going]
    if self._divergence.stops:
      self._diverged += [i for i, loss, *_ in written
                         if not math.isfinite(loss) and i not in self._diverged]
    shares = [mfu for *_, mfu in written if mfu is not None]
    return (step, sum(loss for _, loss, *_ in written) / len(written),
            sum(rate for *_, rate, _ in written), sum(shares) if shares else None)

  def see(self, steps: Sequence[tuple[int, Metrics]]) -> None:
    """Looks whether steps were finite, in their order: of each what `divergence.watched` selects.

    Raises:
      RollBack: the run goes back.
    """
    for step, numbers in jax.device_get(steps):
      parts = self._split(numbers)
      over = [i for i in self._going if self._divergence.see(i, step, parts[i])]
      self._diverged += [i for i in over if i not in self._diverged]

  def evaluation(self, step: int, metrics: Metrics, due: bool) -> Fetched:
    """Writes an evaluation of every run, or only of the diverged if none is `due`; returns one."""
    parts = self._split(metrics)
    found = [self._logs[i].evaluation(step, parts[i])
             for i in (self._going if due else self._diverged)]
    self._put_back(self._going)
    return found[0]

  def save(self, state: State, step: int, due: bool) -> None:
    """Saves every run, or only the diverged if no checkpoint is `due`."""
    # What a checkpoint follows must be on disk before it: a resumed run keeps those lines.
    self._put_back(range(len(self._logs)))
    parts = self._split({"params": state["params"], "opt_state": state["opt_state"]})
    for i in self._going if due else self._diverged:
      # Process 0 alone writes the record, and what a checkpoint keeps of it.
      kept = self._records[i].up_to_here() if distributed.is_writer() else {}
      self._checkpoints[i].save(
          parts[i], step, {"metrics": kept, "diverged": i in self._diverged,
                           "divergence": self._divergence.kept(i)})

  def end_diverged(self, step: int) -> None:
    """Finishes the runs that have diverged, if any."""
    if not self._diverged:
      return
    for i in self._diverged:
      self._divergence.explain(i)
      self._say(f"{self._workdirs[i]}: stopped after step {step}: the loss is not finite")
    self._finish(self._diverged)
    self._diverged = []

  def finish(self) -> None:
    """Finishes the runs that go on."""
    self._finish(self._going)

  def wait(self) -> None:
    """Returns when everything that was saved is on disk."""
    for checkpoints in self._checkpoints:
      checkpoints.wait()

  def restart_clock(self) -> None:
    """Leaves what happened since the last record out of the timing."""
    for log in self._logs:
      log.restart_clock()

  def leave_out(self, seconds: float) -> None:
    """Leaves time that was no step's out of the next record's timing."""
    for log in self._logs:
      log.leave_out(seconds)

  def _finish(self, runs: Sequence[int]) -> None:
    self._put_back(runs)
    for i in runs:
      self._checkpoints[i].wait()
    distributed.wait_for_all("trained")
    for i in runs:
      if distributed.is_writer():
        (self._workdirs[i] / run_directory.DONE).touch()
    self._put_back(runs)
    self._going = [i for i in self._going if i not in runs]

  def _put_back(self, runs: Iterable[int]) -> None:
    """Brings what was written to disk, and to the store where the runs live in one."""
    for i in runs:
      self._logs[i].flush()
      if distributed.is_writer():
        remote.put_back(self._workdirs[i])
