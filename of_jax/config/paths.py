"""Paths that a user gives: `~` in them, and what must hold before anything is read or made there.

Enters: a text. Leaves: a path that can be asked whether it exists. Everything that is wrong with it
is a line for the user, found before any work.
"""

import errno
import os
import stat
import tempfile
from pathlib import Path

from of_jax.errors import UserError, reason_of

# Less what is put before and behind the name of a file that is being written.
_LONGEST_NAME = 200


def expanded(text: str | Path, where: str = "") -> Path:
  """Makes the path of a text, in which a `~` or `~user` in front is that user's folder.

  Args:
    text: a path here, not a URL.
    where: begins messages: the flag or field with its value; default the text.

  Raises:
    UserError: no path: no such user, a NUL in it, too long, or in a folder that may not be entered.
  """
  where = where or str(text)
  try:
    path = Path(text).expanduser()
  except RuntimeError:
    raise UserError(f"{where}: no such user as {str(text).split('/')[0]}") from None
  try:
    os.lstat(path)
  except ValueError:
    raise UserError(f"{where}: a path has no NUL character") from None
  except OSError as error:
    # A file that does not exist is no fault yet: it may be about to be made.
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
      raise UserError(f"{where}: cannot be looked at: {reason_of(error)}") from None
  return path


def check_no_pattern(where: str, path: Path) -> None:
  """Checks that a folder's name is no pattern: Orbax finds the files of a checkpoint by one.

  Raises:
    UserError: it has a `*`, `?`, `[` or a backslash in it.
  """
  found = [character for character in "*?[\\" if character in str(path.absolute())]
  if found:
    raise UserError(f"{where}: {path.absolute()} has {' and '.join(found)} in it, which Orbax "
                    "takes for a pattern; give a folder of another name")


def check_file(where: str, path: Path) -> Path:
  """Gives a path that a file can be read from, which pipes and devices might never end.

  Raises:
    UserError: nothing there, a folder, or no regular file.
  """
  try:
    mode = os.stat(path).st_mode
  except OSError as error:
    is_link = os.path.islink(path)
    raise UserError(f"{where}: " + (
        "a link to nothing" if is_link and error.errno == errno.ENOENT else
        "no such file" if error.errno in (errno.ENOENT, errno.ENOTDIR) else
        f"cannot be read: {reason_of(error)}")) from None
  if not stat.S_ISREG(mode):
    raise UserError(f"{where}: is {kind_of(mode)}, not a file")
  return path


def kind_of(mode: int) -> str:
  """Names what a mode, as os.stat gives it, is of."""
  kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
           stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
  return kinds.get(stat.S_IFMT(mode), "a file")


def check_output_folder(where: str, path: Path) -> Path:
  """Gives a folder that is there and can be written, or can be made; leaves nothing behind.

  Raises:
    UserError: it is something else, or cannot be.
  """
  whole = path.absolute()
  there = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
  if there.is_symlink() and not there.exists():
    raise UserError(f"{where}: {there} is a link to nothing")
  if not there.is_dir():
    what = f"{there} is" if there != whole else "is"
    raise UserError(f"{where}: {what} {kind_of(os.stat(there).st_mode)}, not a folder")
  try:
    longest = os.pathconf(there, "PC_NAME_MAX")
    for name in whole.relative_to(there).parts:
      if len(os.fsencode(name)) > longest:
        raise UserError(f"{where}: a name in it is longer than {longest} bytes")
    # Under a name of its own, so that no other process is in the way. It may be root that asks,
    # of a file system that takes nothing: trying is the only way to know.
    os.rmdir(tempfile.mkdtemp(prefix=".of_jax_", dir=there))
  except OSError as error:
    raise UserError(f"{where}: {there} cannot be written: {reason_of(error)}; give another folder"
                    ) from None
  return path


def check_output_file(where: str, path: Path) -> Path:
  """Gives a path at which a file can be written. Raises UserError where it cannot."""
  check_output_folder(where, path.absolute().parent)
  if len(os.fsencode(path.name)) > _LONGEST_NAME:
    raise UserError(f"{where}: its name is longer than {_LONGEST_NAME} bytes")
  if path.is_dir():
    raise UserError(f"{where}: is a folder; give a file")
  if os.path.lexists(path) and not path.is_file():
    raise UserError(f"{where}: is no file, or a link to nothing")
  return path


def check_utf8(where: str, path: str | Path) -> None:
  """Refuses a path that is not UTF-8, where a library that writes there takes no other.

  Raises:
    UserError: it is not.
  """
  try:
    str(path).encode("utf-8")
  except UnicodeEncodeError:
    raise UserError(f"{where}: is not UTF-8, which run directories must be") from None
