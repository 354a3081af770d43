"""Writers that a run can do without: one that fails or blocks is dropped, and the run goes on."""

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from of_jax.errors import one_line, reason_of
from of_jax.train.types import Log

Record = Mapping[str, Any]

# Records that wait for a writer, and the seconds in which it must have done something.
_WAITING, _PATIENCE = 256, 10.0


class Writer(Protocol):
  """Takes records in the order of their steps."""

  def write(self, record: Record) -> None:
    """Writes one record; its `step` and, for metrics, its `split` say what it is."""

  def flush(self) -> None:
    """Hands everything written to the operating system, so that a killed process loses none."""

  def close(self) -> None:
    """Flushes and lets go."""


class Optional:
  """A writer in a thread of its own.

  The loop waits for it while it does its work, since records come faster than some write them, and
  no longer than _PATIENCE while it does nothing. One that raised, or was waited for in vain, is
  never asked again, which is said in one line.
  """

  def __init__(self, name: str, make: Callable[[], Writer], say: Log):
    """Args: what the line calls it; what opens it, in its thread; what takes the line."""
    self._name, self._say = name, say
    self._asked: queue.Queue[Callable[[Writer], None] | None] = queue.Queue(_WAITING)
    self._moved = threading.Condition()
    self._done = self._sent = 0
    self._fault: str | None = None
    self._is_dropped = False
    threading.Thread(target=self._run, args=(make,), name=name, daemon=True).start()

  def write(self, record: Record) -> None:
    self._ask(lambda writer: writer.write(record))

  def flush(self) -> None:
    self._ask(lambda writer: writer.flush())
    self._wait()

  def close(self) -> None:
    self._ask(lambda writer: writer.close())
    self._wait()
    # Ends the thread, unless that is stuck.
    with contextlib.suppress(queue.Full):
      self._asked.put_nowait(None)

  def _ask(self, call: Callable[[Writer], None]) -> None:
    if self._goes_on():
      try:
        self._asked.put(call, timeout=_PATIENCE)
        self._sent += 1
      except queue.Full:
        self._drop(f"it did nothing for {_PATIENCE:g} s")

  def _wait(self) -> None:
    """Returns once all that was asked is done, or the writer is dropped."""
    while self._goes_on() and self._done < self._sent:
      with self._moved:
        before = self._done
        moved = self._moved.wait_for(
            lambda: self._done > before or self._fault is not None, _PATIENCE)
      if not moved:
        self._drop(f"it did nothing for {_PATIENCE:g} s")
    self._goes_on()

  def _goes_on(self) -> bool:
    if self._fault is not None and not self._is_dropped:
      self._drop(self._fault)
    return not self._is_dropped

  def _drop(self, reason: str) -> None:
    self._is_dropped = True
    self._say(f"{self._name}: dropped, the run goes on without it: {one_line(reason)}")

  def _run(self, make: Callable[[], Writer]) -> None:
    writer = None
    try:
      writer = make()
      while (call := self._asked.get()) is not None:
        call(writer)
        with self._moved:
          self._done += 1
          self._moved.notify_all()
      if self._is_dropped:
        # It was only slow. Nobody waits for it any more.
        writer.close()
    # Whatever it is: libraries also end their threads by SystemExit.
    except BaseException as error:
      with self._moved:
        self._fault = reason_of(error)
        self._moved.notify_all()
      if writer is not None:
        with contextlib.suppress(BaseException):
          writer.close()
