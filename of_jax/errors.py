"""Ends of a run that are no fault in the code: a user's mistake, or word from the scheduler."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake in what the user gave: a flag, a file, a combination of settings.

  The message is one line that says what is wrong, which value it had, and what would be
  right. Binaries print it behind `error: ` and exit with status 1, without a traceback.
  """


class Preempted(Exception):
  """A run was told to stop and is saved; the same command resumes.

  Binaries exit with `status`: EX_TEMPFAIL, and not 0, which schedulers take for finished.
  """

  status = 75


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
  """Finds the known name that is most like `name`; None where none is at least `cutoff` like it."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
  return close[0] if close else None


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6, otherwise: str = "") -> str:
  """Ends a UserError's message: `; did you mean NAME?` with the closest name, or `otherwise`."""
  close = closest(name, known, cutoff)
  return f"; did you mean {close}?" if close else otherwise
