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
  _ignore_abandoned_reads()
  gc.collect()


@functools.cache
def _ignore_abandoned_reads() -> None:
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    code = getattr(unraisable.object, "cr_code", None)
    # The second is of a loop that found no descriptor to begin with.
    if not (str(unraisable.exc_value) == "Event loop is closed"
            or "'_ssock'" in str(unraisable.exc_value)
            or code is not None and "orbax" in code.co_filename):
      previous(unraisable)

  sys.unraisablehook = hook


@functools.cache
def quiet_savers() -> None:
  """Keeps Orbax's threads from logging what they raise: the save that they belong to raises it."""
  _ignore_abandoned_reads()
  logging.getLogger("absl").addFilter(lambda record: "_SignalingThread" not in str(record.msg))
