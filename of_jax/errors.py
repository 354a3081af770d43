"""Ends of a run that are no fault in the code: a user's mistake, or word from the scheduler."""

import contextlib
import difflib
import os
import re
import tempfile
import traceback
from collections.abc import Iterable, Iterator

# What is longer is shortened in messages: words, as paths and values are, and lines.
_LONGEST_WORD, _LONGEST_LINE = 240, 3_000


class UserError(Exception):
  """A mistake in what the user gave: a flag, a file, a combination of settings.

  The message is one line that says what is wrong, which value it had, and what would be
  right; what is not printable in it is escaped, and what is long is shortened. Binaries print it
  behind `error: ` and exit with status 1, without a traceback.
  """

  def __init__(self, message: str = ""):
    super().__init__(one_line(message))


class Preempted(BaseException):
  """A run was told to stop and is saved; the same command resumes.

  No Exception, so that no `except Exception` of a user's metric or of a library swallows it.
  Binaries exit with `status`: EX_TEMPFAIL, and not 0, which schedulers take for finished.
  """

  status = 75


class Interrupted(Preempted, KeyboardInterrupt):
  """A person's Ctrl-C told the run to stop."""

  status = 130


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
  """Finds the known name that is most like `name`; None where none is at least `cutoff` like it."""
  # Comparing takes time that grows with the square of the length.
  close = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=cutoff)
  return close[0] if close else None


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6, otherwise: str = "") -> str:
  """Ends a UserError's message: `; did you mean NAME?` with the closest name, or `otherwise`."""
  close = closest(name, known, cutoff)
  return f"; did you mean {close}?" if close else otherwise


def one_line(text: str) -> str:
  """Makes of a text one line that every terminal can show, with what is long in it shortened."""
  if len(text) > _LONGEST_LINE:
    text = f"{text[:_LONGEST_LINE - 500]} ... {text[-480:]}"
  text = "".join(
      c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode()
      for c in text)
  return re.sub(rf"\S{{{_LONGEST_WORD + 1},}}",
                lambda found: f"{found[0][:_LONGEST_WORD - 60]}...{found[0][-40:]}", text)


def unforeseen(error: BaseException) -> str:
  """Makes one line of an error for which this project has no message, and keeps its traceback in a
  file, which the line names; with OF_JAX_TRACEBACK=1 the traceback is printed first."""
  if os.environ.get("OF_JAX_TRACEBACK") == "1":
    traceback.print_exception(error)
  frames = [frame for frame in traceback.extract_tb(error.__traceback__)
            if f"{os.sep}of_jax{os.sep}" in frame.filename]
  where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
  line = f"{UNFORESEEN} {type(error).__name__}{where}: {' '.join(str(error).split())[:300]}"
  try:
    handle, path = tempfile.mkstemp(".txt", "of_jax_traceback_")
    with open(handle, "w", errors="backslashreplace") as file:
      traceback.print_exception(error, file=file)
  except OSError:
    return f"{line}; set OF_JAX_TRACEBACK=1 to see where"
  return f"{line}; please report it with {path}"


# Begins the line of `unforeseen`. The harness of faults counts it as a traceback.
UNFORESEEN = "a fault of of_jax:"
# What a user's own file may raise that is its mistake, the end of the process included.
THEIRS = (Exception, SystemExit)


def reason_of(error: BaseException) -> str:
  """Says in a few words why something failed, for a user."""
  if isinstance(error, MemoryError):
    return "there is too little memory for it"
  if isinstance(error, RecursionError):
    return "it is nested too deeply"
  try:
    text = " ".join(str(error).split())
  except Exception:  # Of a class of somebody's own.
    text = ""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if text and type(error) in (ValueError, Exception):
    # Raised with words of its own, and by libraries for whatever they do not take.
    return text[:160]
  return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


@contextlib.contextmanager
def refusing(where: str, what: str = "cannot be read") -> Iterator[None]:
  """Turns whatever a reader raises about what it was given into one line for the user.

  A panic of a library in Rust is no Exception, so all but what ends the process is taken.

  Args:
    where: names what is read.
    what: is wrong with it then.

  Raises:
    UserError: for anything that was raised in the block.
  """
  try:
    yield
  except BaseException as error:
    if isinstance(error, (UserError, Preempted, KeyboardInterrupt, SystemExit, GeneratorExit)):
      raise
    raise UserError(f"{where}: {what}: {reason_of(error)}") from error
