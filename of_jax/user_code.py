"""Code of a user's own, named as FILE.py:NAME where a config takes the name of a variant.

It is checked without being run, and run when what it names is made. A file that a run directory
brings (in its folder `user_code`) is run only if the user has said so, or has named a file that
says the same.
"""

import ast
import functools
import hashlib
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from of_jax.errors import THEIRS, UserError, nearest, reason_of

# Of a run directory: copies of the files that its config names.
FOLDER = "user_code"
_LARGEST = 10_000_000
# Hashes of the files that this process may run although a run directory brings them.
_trusted: set[str] = set()
# Files that were run, as tracebacks name them.
_run: set[str] = set()


def is_own(text: Any) -> bool:
  """Says whether a text means a user's own code: FILE.py:NAME, or FILE.py with NAME forgotten."""
  return isinstance(text, str) and (text.endswith(".py") or ".py:" in text)


def split(text: str) -> tuple[str, str]:
  """Splits FILE.py:NAME into the file as it was typed and the name."""
  path, _, name = text.rpartition(":")
  return path, name


def file_of(text: str) -> Path:
  """Finds the file of FILE.py:NAME, which need not be there."""
  try:
    return Path(split(text)[0]).expanduser()
  except RuntimeError:
    raise UserError(f"{text}: no such user as {text.split('/')[0]}") from None


def shown(text: Any) -> Any:
  """Writes FILE.py:NAME for people and comparisons, without folders and with the beginning of the
  file's hash, so that equal code reads alike wherever it lies; whatever else stays."""
  if not is_own(text):
    return text
  file, (path, name) = file_of(text), split(text)
  short = Path(path).name.partition("_")[2] if _is_copy(file) else Path(path).name
  return f"{short}:{name}" + (f"@{sha256(file)[:8]}" if file.is_file() else "")


def check(where: str, text: str) -> None:
  """Checks FILE.py:NAME without running it.

  Args:
    where: begins messages: the field with its value.
    text: names the file and what it defines.

  Raises:
    UserError: not of that form, no such file or too large a one, not Python, or no such name.
  """
  path, name = split(text)
  if not path.endswith(".py") or not name.isidentifier():
    raise UserError(f"{where}: not of the form FILE.py:NAME")
  tree = parsed(text, where)
  defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
  if name not in defined:
    raise UserError(f"{where}: {path} defines no class or function {name}{nearest(name, defined)}")


def parsed(text: str, where: str = "") -> ast.Module:
  """Parses the file of FILE.py:NAME. Raises UserError where it cannot, naming the line."""
  path, content = split(text)[0], _content(text, where)
  try:
    return ast.parse(content)
  except SyntaxError as error:
    raise UserError(f"{path}:{error.lineno or 1}: not Python: {error.msg}") from None
  except (ValueError, RecursionError, MemoryError) as error:
    raise UserError(f"{path}: not Python: {reason_of(error)}") from None


def _content(text: str, where: str) -> bytes:
  file, where = file_of(text), where or text
  try:
    if not file.is_file():
      raise UserError(f"{where}: no such file as {split(text)[0]}")
    if file.stat().st_size > _LARGEST:
      raise UserError(f"{where}: {file} has more than {_LARGEST:,} bytes")
    return file.read_bytes()
  except (OSError, ValueError) as error:
    raise UserError(f"{where}: cannot be read: {reason_of(error)}") from None


def sha256(file: Path) -> str:
  """Hashes a file; in hexadecimal."""
  return hashlib.sha256(file.read_bytes()).hexdigest()


def trust(text: str, copies: bool = False) -> None:
  """Lets what a run directory brings be run where it says the same as the file of FILE.py:NAME.

  Args:
    text: named by the user, in a config or command.
    copies: whether it may itself be what a run directory brings.
  """
  file = file_of(text)
  if file.is_file() and (copies or not _is_copy(file)):
    _trusted.add(sha256(file))


def _is_copy(file: Path) -> bool:
  # Of the path as it is written: a link out of the run directory is still what that brings.
  return file.parent.name == FOLDER


def load(text: str, where: str = "") -> Any:
  """Runs the file of FILE.py:NAME, once for its content, and returns what NAME is.

  Raises:
    UserError: it fails, or is what a run directory brings and nobody has said that it may run.
  """
  check(where or text, text)
  file, content = file_of(text), _content(text, where)
  found = hashlib.sha256(content).hexdigest()
  if _is_copy(file) and found not in _trusted:
    raise UserError(
        f"{file}: is Python that the run directory brings, and was not run; --run_user_code of "
        "measure and quantise runs it, run_user_code=True in Python, and a command that names your "
        "own file of the same content")
  return getattr(_module(str(file), found, content), split(text)[1])


@functools.cache
def _module(file: str, sha: str, content: bytes) -> types.ModuleType:
  name = f"of_jax_{FOLDER}_{Path(file).stem}_{sha[:12]}"
  module = types.ModuleType(name)
  module.__file__ = file
  # Where dataclasses look for the names that hints mention.
  sys.modules[name] = module
  runs(file)
  try:
    exec(compile(content, file, "exec"), vars(module))
  except THEIRS as error:
    raise UserError(fault(error) or f"{file}: fails with {reason_of(error)}") from error
  return module


def runs(file: str) -> None:
  """Notes a file that is run, so that an error out of it is known for its own: see `fault`."""
  _run.add(file)


def fault(error: BaseException) -> str:
  """Says where in a user's own file an error arose and what it is; "" where it is of no such file.
  """
  at = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in _run]
  return f"{at[-1][0]}:{at[-1][1]}: {reason_of(error)}" if at else ""
