"""What ends a run early without a fault in it: a user's mistake, or word from the scheduler."""

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


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
  """`; did you mean NAME?` with the known name that is nearest, or nothing; for a UserError."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
  return f"; did you mean {close[0]}?" if close else ""
