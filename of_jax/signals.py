"""Word to stop: SIGINT from a person, SIGTERM from a scheduler, whatever a process is busy with.

An exception out of a signal's handler comes up wherever Python happens to be: inside a callback of
the compiler it ends the process in a crash, in a destructor it is swallowed, and while C++ runs it
does not come at all. So a binary raises none. A thread of its own takes the signals. While nothing
can be saved it ends the process, as a kill would, which loses nothing; while a run steps, it asks
the run to save and end, says what is waited for if that takes long, and at a second SIGINT ends the
process. Exit statuses: 130 for SIGINT, and Preempted's for SIGTERM.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from of_jax.errors import Interrupted, Preempted

# Until it is said what is waited for.
_SECONDS = 5.0
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_RESUMES = "the same command resumes"


class Stoppable(Protocol):
  """Work that saves before it ends."""

  def stop(self, number: int) -> None:
    """Sees to it that it ends soon, for this signal."""

  def busy_with(self) -> str:
    """Says what that waits for."""


class Watch:
  """The thread that takes a process's signals.

  Attributes:
    told: the signal that first asked the process to stop, or None.
  """

  def __init__(self) -> None:
    self.told: int | None = None
    self._running: Stoppable | None = None
    self._tell: Callable[[str, int], None] | None = None
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    threading.Thread(target=self._run, name="signals", daemon=True).start()

  @contextlib.contextmanager
  def receiving(self) -> Iterator[None]:
    """Receives the process's signals while the block runs; called in the main thread."""
    # One that is ignored from the start, as SIGINT in what a script runs behind `&`, stays so.
    before = {number: signal.signal(number, _nothing) for number in _NUMBERS
              if signal.getsignal(number) != signal.SIG_IGN}
    wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    # Where the interpreter is taken apart, nobody is left to take a signal.
    atexit.register(_ignore)
    try:
      yield
    finally:
      self._running = self._tell = None
      signal.set_wakeup_fd(wakeup)
      for number, handler in before.items():
        signal.signal(number, handler)
      os.close(self._write)  # Ends the thread.

  def asks(self, running: Stoppable | None) -> None:
    """Sets what is asked to stop; None: nothing is, and the process just ends."""
    self._running = running

  def tells(self, tell: Callable[[str, int], None] | None) -> None:
    """Sets who hears, with line and status, that this process just ends, as others of its job."""
    self._tell = tell

  def _run(self) -> None:
    while numbers := os.read(self._read, 64):
      for number in numbers:
        if number in _NUMBERS:
          self._take(number)
    os.close(self._read)

  def _take(self, number: int) -> None:
    if number == signal.SIGINT and self.told is not None:
      end("interrupted again: ended at once; " + _RESUMES, Interrupted.status)
    self.told = self.told or number
    if self._running is None:
      last = ("interrupted; " + _RESUMES, Interrupted.status) if number == signal.SIGINT else (
          "told to stop before the first step; nothing new to save; " + _RESUMES,
          Preempted.status)
      if self._tell is not None:
        self._tell(*last)
      end(*last)
    else:
      self._running.stop(number)
      timer = threading.Timer(_SECONDS, self._say)
      timer.daemon = True
      timer.start()

  def _say(self) -> None:
    running, again = self._running, " again" if self.told == signal.SIGINT else ""
    if running is not None:
      _write(f"stopping: waits for {running.busy_with()}; Ctrl-C{again} ends at once")


_watch: Watch | None = None


def current() -> Watch | None:
  """Gives what takes this process's signals; None outside `watched`, as in a program that only
  uses the package: there signals are Python's."""
  return _watch


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """Takes SIGINT and SIGTERM while the block runs, for a binary; once a process."""
  global _watch
  if _watch is not None or threading.current_thread() is not threading.main_thread():
    yield
    return
  _watch = Watch()
  try:
    with _watch.receiving():
      yield
  finally:
    _watch = None


def end(message: str, status: int) -> None:
  """Ends this process at once with a line, from whichever thread."""
  # What the main thread holds, as the lock of a stream, is not waited for.
  flushing = threading.Thread(target=_flush, daemon=True)
  flushing.start()
  flushing.join(1.0)
  _write(message)
  os._exit(status)


def _write(message: str) -> None:
  # A progress bar may have hidden the cursor.
  prefix = "\n\033[?25h" if os.isatty(2) else ""
  with contextlib.suppress(OSError):
    os.write(2, f"{prefix}{message}\n".encode(errors="replace"))


def _flush() -> None:
  with contextlib.suppress(Exception):
    sys.stdout.flush()


def _nothing(number: int, frame: FrameType | None) -> None:
  """Does nothing: that there is a handler has the number written to the thread's pipe."""


def _ignore() -> None:
  for number in _NUMBERS:
    signal.signal(number, signal.SIG_IGN)
