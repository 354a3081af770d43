"""Turns a file that a run needs and cannot write into one line."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from of_jax.errors import UserError, reason_of
from of_jax.storage import remote
from of_jax.storage.checkpoint import Checkpoints


@contextlib.contextmanager
def saying_what_is_saved(workdirs: Sequence[Path]) -> Iterator[None]:
  """Turns an OSError of any kind, as of a full disk, into one line that says what is saved.

  Raises:
    UserError: in place of the OSError.
  """
  try:
    yield
  except OSError as error:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    raise UserError(f"{remote.name_of(workdirs[0])}: stopped: {where}{reason_of(error)}; "
                    f"{_saved(workdirs)}") from error


def _saved(workdirs: Sequence[Path]) -> str:
  try:
    steps = [Checkpoints(workdir, reading=True).latest for workdir in workdirs]
  except FileNotFoundError:
    return "nothing of it is saved"
  except OSError:
    return "what is saved of it cannot be read"
  found = [step for step in steps if step is not None]
  if len(found) < len(steps):
    return "the same command begins again"
  return f"saved up to step {min(found)}, from which the same command goes on"
