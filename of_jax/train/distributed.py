"""Processes of one job: joining, agreeing, ending together, and being told to stop.

Exit statuses, for launchers: 0 finished, 1 a user's mistake, 75 (EX_TEMPFAIL) to be started again:
told to stop and saved, or another process was lost. 75 and not 0, which schedulers take for done.
130: a person's Ctrl-C.
"""

import dataclasses
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np

from of_jax import signals
from of_jax.errors import Interrupted, Preempted, UserError, unforeseen
from of_jax.train import parting

# Seconds without a sign of life after which a process is given up. JAX's default of 100 would let
# the others wait for minutes.
_HEARTBEAT = 20
_JOINING = 300
# Seconds after which it is said what is waited for.
_QUIET = 10.0


@dataclasses.dataclass(frozen=True)
class Job:
  """Meeting point of a job's processes.

  Attributes:
    coordinator: HOST:PORT of process 0, or `auto` for what the cluster says: Cloud TPU, GKE, SLURM
      and Open MPI, as jax.distributed finds them.
    processes, process: how many there are, and which is this. With `auto` the cluster says.
  """

  coordinator: str
  processes: int | None = None
  process: int | None = None


@contextmanager
def joined(job: Job | None) -> Iterator[None]:
  """Joins the job's processes for the block; does nothing for None, a process alone.

  Without an error the processes part together. With one, this process ends at once, with status 1
  for a UserError and 75 otherwise, and the others with it: they would wait for each other.

  Raises:
    UserError: the processes did not meet.
    Preempted: all were told to stop, and saved after the same step.
  """
  if job is None:
    yield
    return
  waiting = threading.Timer(_QUIET, lambda: print(
      f"waits up to {_JOINING} s for all {job.processes or ''} processes to meet at "
      f"--coordinator={job.coordinator}", file=sys.stderr, flush=True))
  waiting.daemon = True
  waiting.start()
  try:
    jax.distributed.initialize(
        None if job.coordinator == "auto" else job.coordinator, job.processes, job.process,
        initialization_timeout=_JOINING, heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=60)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"--coordinator={job.coordinator}: the processes did not meet: "
                    f"{str(error).splitlines()[0]}") from error
  finally:
    waiting.cancel()
  try:
    with parting.listening():
      yield
  except Preempted:
    # All were told, and stopped at the same step.
    jax.distributed.shutdown()
    raise
  except UserError as error:
    parting.end(f"error: {error}", 1)
  except Exception as error:
    if jax.process_count() == 1:
      raise
    is_of_another = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    # Where it is because another process ended, that one has said why.
    parting.end_as_another_did(seconds=5.0 if is_of_another else 0.0)
    first = (str(error).splitlines() or [""])[0]
    parting.end(
        f"process {jax.process_index()} of {jax.process_count()}: " + (
            f"another process is gone, or this one failed: {type(error).__name__}: {first[:300]}"
            if is_of_another else unforeseen(error)) + "; the same command resumes",
        Preempted.status)
  else:
    jax.distributed.shutdown()


def is_writer() -> bool:
  """Says whether this process writes the run directory's files and talks to the user."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Waits until every process of the job has called this with the same name."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def check_agreement(facts: Mapping[str, Any],
                    advice: str = "start all processes with the same command, on the same data "
                                  "and code") -> None:
  """Checks that all processes of the job have the same facts.

  Args:
    facts: name -> value that JSON can hold.
    advice: ends the message.

  Raises:
    UserError: in every process, if one has another value than process 0.
  """
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils
  names = list(facts)
  ours = np.stack([np.frombuffer(hashlib.sha256(json.dumps(
      facts[name], sort_keys=True).encode()).digest()[:4], np.uint32) for name in names])
  everyone = np.asarray(multihost_utils.process_allgather(ours))
  for name, hashes in zip(names, everyone.reshape(-1, len(names)).T):
    others = [str(i) for i, value in enumerate(hashes) if value != hashes[0]]
    if others:
      raise UserError(f"{name}: process {', '.join(others)} has another than process 0; {advice}")


def told(find: Callable[[], Any]) -> Any:
  """Gives every process what process 0 finds, which JSON can hold.

  Raises:
    UserError: process 0 raised one; in every process.
  """
  if jax.process_count() == 1:
    return find()
  from jax.experimental import multihost_utils
  answer: dict[str, Any] = {}
  if is_writer():
    try:
      answer = {"found": find()}
    except UserError as error:
      answer = {"error": str(error)}
  text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
  if not is_writer():
    text = np.zeros(length, np.uint8)
  answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
  if "error" in answer:
    raise UserError(answer["error"])
  return answer["found"]


def any_of(fact: bool) -> bool:
  """Says whether a fact holds in at least one process of the job."""
  if jax.process_count() == 1:
    return fact
  from jax.experimental import multihost_utils
  return bool(np.any(multihost_utils.process_allgather(np.asarray(fact))))


class Interruption:
  """Word to stop, as Ctrl-C, schedulers and Cloud TPU's maintenance send it: stops after a step.

  If one of several processes is told alone, all stop after the same step. While nothing has been
  trained there is nothing to save: a binary ends at once (of_jax.signals), and where the package is
  only used, Preempted is raised.
  """

  def __init__(self) -> None:
    self._told: int | None = None
    self._at: int | None = None
    self._asked = 0
    self._is_answered = False
    self._previous: dict[int, Any] = {}
    self._watch: signals.Watch | None = None

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      self._watch = signals.current()
      # With several processes jax.distributed takes SIGTERM and tells the others.
      if self._watch is None and jax.process_count() == 1:
        self._previous = {number: signal.signal(number, self._take)
                          for number in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
               trace: TracebackType | None) -> None:
    if self._watch is not None:
      self._watch.asks(None)
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if self._told is not None and error is None and not self._is_answered:
      # What comes next, as another run of a study, is not begun.
      raise self.ended("told to stop; the run had just come to its end")

  def stops_at(self, step: int) -> bool:
    """Says whether to save after this step and stop; every process asks at every step."""
    self._at = step
    self._asked += 1
    if self._watch is not None:
      self._watch.asks(self)
    if jax.process_count() == 1:
      self._is_answered = self._told is not None
    else:
      from jax.experimental import multihost_utils

      # JAX stops at the number that follows the largest that it was asked with, or at 1: no number
      # may be passed over. A resumed run does not begin at 1, and a rollback goes back.
      self._is_answered = bool(multihost_utils.reached_preemption_sync_point(self._asked))
    return self._is_answered

  def ended(self, message: str) -> Preempted:
    """Makes what to raise once all is saved."""
    return (Interrupted if self._told == signal.SIGINT else Preempted)(message)

  def stop(self, number: int) -> None:
    """Asks for a stop after the step that runs; called from the thread that takes signals."""
    self._told = number
    if jax.process_count() > 1 and number == signal.SIGINT:
      # What jax.distributed passes on to the others.
      os.kill(os.getpid(), signal.SIGTERM)

  def busy_with(self) -> str:
    """Says what a stop waits for."""
    return f"step {self._at} or what follows it, which may be compiling, and for its save"

  def _take(self, number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT == self._told:
      raise KeyboardInterrupt
    self._told = number
    if self._at is None:
      raise self.ended("told to stop before the first step; nothing new to save")
