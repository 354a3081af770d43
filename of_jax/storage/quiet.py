"""Quiet for Orbax where it reads what is damaged, of which one line is said and not a page."""

import contextlib
import functools
import gc
import logging
import sys
import warnings
from collections.abc import Iterator
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
  _ignore_closed_loops()
  gc.collect()


@functools.cache
def _ignore_closed_loops() -> None:
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      previous(unraisable)

  sys.unraisablehook = hook
