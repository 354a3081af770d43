"""Quiet for Orbax where it reads or writes what is damaged: one line is said of it, not a page."""

import contextlib
import functools
import gc
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps what is logged or warned of in the block to itself."""
  level = logging.root.manager.disable
  logging.disable(logging.CRITICAL)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    logging.disable(level)


def abandon() -> None:
  """Lets go of what a reader that failed left running; called in `quiet`, once its error is gone.

  Tasks that nobody waits for speak when they are collected, and reads that end later find their
  event loop closed.
  """
  quiet_orbax()
  gc.collect()


@functools.cache
def quiet_orbax() -> None:
  """Keeps Orbax's threads, tasks and logs to themselves, for the life of the process.

  What fails in them is raised by the save or the restore that they belong to. Python would print it
  besides: by one hook for threads, by another for what is collected, by a third for calls from C++.
  """
  of_threads, of_collected, of_calls = threading.excepthook, sys.unraisablehook, sys.excepthook

  def thread(args: threading.ExceptHookArgs) -> None:
    if not _is_orbax(args.exc_value):
      of_threads(args)

  def collected(args: Any) -> None:
    code = getattr(args.object, "cr_code", None)
    if not (_is_orbax(args.exc_value) or code is not None and _is_of_orbax(code.co_filename)):
      of_collected(args)

  def call(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
    if threading.current_thread() is threading.main_thread() or not _is_orbax(error):
      of_calls(kind, error, frames)

  threading.excepthook, sys.unraisablehook, sys.excepthook = thread, collected, call
  # A reader that failed leaves coroutines, which may be collected as late as the process ends.
  warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
  # A task whose error nobody took is said by asyncio when it is collected.
  for name in ("absl", "asyncio", "concurrent.futures"):
    logging.getLogger(name).addFilter(lambda record: not _is_record_of_orbax(record))


def _is_record_of_orbax(record: logging.LogRecord) -> bool:
  error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
  return (_is_of_orbax(record.pathname) or _is_orbax(error) or "_SignalingThread" in str(record.msg)
          or record.name == "asyncio" and "orbax" in record.getMessage())


def _is_orbax(error: BaseException | None) -> bool:
  """Tells whether an error passed through Orbax, or is of a loop that Orbax closed, or could not
  open for want of a descriptor."""
  if error is None:
    return False
  return ("Event loop is closed" in str(error) or "'_ssock'" in str(error)
          or any(_is_of_orbax(frame.f_code.co_filename)
                 for frame, _ in traceback.walk_tb(error.__traceback__)))


def _is_of_orbax(file: str) -> bool:
  return "orbax" in Path(file).parts
