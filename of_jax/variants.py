"""Variants by name: a folder of files, each holding one class or function that a config names.

`of_jax/models/blocks/op.py` is what `model.block=op` means. The folder is the table, so a new
variant is one new file, and the config can check a name without importing jax. In place of a name
may stand FILE.py:NAME, a class or function of a user's own file, see of_jax.user_code.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from of_jax import user_code
from of_jax.errors import UserError

_PACKAGE = pathlib.Path(__file__).parent
# Where the folders are looked for. Tests add a root of their own, see tests/planted.py.
_ROOTS = [_PACKAGE]
_REQUIRED = object()
# What a constant may compute of others.
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow,
    ast.Div: operator.truediv, ast.BitOr: operator.or_}

FOLDERS = ("models/blocks", "models/norms", "models/mlps", "models/softmaxes", "models/gates")

T = TypeVar("T")


class BadVariant(UserError, LookupError):
  """A fault in the file of a variant, as `FILE:LINE: what is wrong`."""


def names(folder: str) -> tuple[str, ...]:
  """The names to choose from in `folder` (relative to the package), sorted."""
  return tuple(sorted(path.stem for root in _ROOTS for path in (root / folder).glob("*.py")
                      if path.stem != "__init__"))


def file_of(folder: str, name: str) -> pathlib.Path:
  """The file `folder/name.py`, or a user's own where `name` is FILE.py:NAME.

  Raises:
    LookupError: there is none.
  """
  if user_code.is_own(name):
    return user_code.file_of(name)
  for root in _ROOTS:
    if (path := root / folder / f"{name}.py").is_file():
      return path
  raise LookupError(f"of_jax/{folder} holds no file {name}.py")


def literal(folder: str, name: str, constant: str, default: Any = _REQUIRED) -> Any:
  """Reads a constant at the top of the file `folder/name.py`, without running the file.

  So a variant declares in its own file what the config checks before jax is imported. The value
  is made of literals, of arithmetic on them and of other constants at the top of the same file;
  it may be annotated. Whoever gets a list or dictionary must not change it.

  Args:
    folder, name: the file, relative to the package.
    constant: the name that it is assigned to.
    default: the value where the file does not set it.

  Raises:
    BadVariant: there is no default and no such constant, its value is not one that can be read,
      or the file is not Python.
  """
  if default is not _REQUIRED and constant not in constants(folder, name):
    return default
  return _evaluated(folder, name, constant)


def constants(folder: str, name: str) -> tuple[str, ...]:
  """The names that the file `folder/name.py` assigns at its top, each by a line of its own.

  Raises:
    BadVariant: the file is not Python.
  """
  return tuple(_assigned(folder, name))


def fault(folder: str, name: str, constant: str, what: str) -> BadVariant:
  """The error that a constant of a file is wrong, naming the file and the line."""
  return _fault(file_of(folder, name), _assigned(folder, name)[constant][0].lineno,
                f"{constant} {what}")


def _fault(path: pathlib.Path, line: int, what: str) -> BadVariant:
  shown = path.relative_to(_PACKAGE.parent) if path.is_relative_to(_PACKAGE) else path
  return BadVariant(f"{shown}:{line}: {what}")


@functools.cache
def _parsed(folder: str, name: str) -> ast.Module:
  path = file_of(folder, name)
  if user_code.is_own(name):
    return user_code.parsed(name)
  try:
    return ast.parse(path.read_text())
  except SyntaxError as error:
    raise _fault(path, error.lineno or 1, f"not Python: {error.msg}") from None


@functools.cache
def _assigned(folder: str, name: str) -> dict[str, list[ast.Assign | ast.AnnAssign]]:
  """The statements that assign a name at the top of a file, in their order."""
  found: dict[str, list[ast.Assign | ast.AnnAssign]] = {}
  for node in _parsed(folder, name).body:
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      for target in targets:
        if isinstance(target, ast.Name):
          found.setdefault(target.id, []).append(node)
  return found


@functools.cache
def _evaluated(folder: str, name: str, constant: str) -> Any:
  """The value of a constant that the file must have."""
  path, assigned = file_of(folder, name), _assigned(folder, name)
  if constant not in assigned:
    elsewhere = [node.lineno for node in ast.walk(_parsed(folder, name))
                 if isinstance(node, ast.Name) and node.id == constant
                 and isinstance(node.ctx, ast.Store)]
    if elsewhere:
      raise _fault(path, elsewhere[0], f"{constant} must be assigned at the top of the file, by "
                   "itself")
    raise _fault(path, 1, f"states no {constant}; assign it a literal at the top of the file")
  reader = _Reader(path, assigned, constant)
  try:
    return reader.value_of(constant, ())
  except (ArithmeticError, TypeError, ValueError) as error:
    raise reader.refusal(assigned[constant][0], f"cannot be read: {error}") from None


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Evaluates one constant from what its file assigns; `reading` has the names that wait for it."""

  path: pathlib.Path
  assigned: Mapping[str, Sequence[ast.Assign | ast.AnnAssign]]
  constant: str

  def refusal(self, node: ast.expr | ast.stmt, what: str) -> BadVariant:
    return _fault(self.path, node.lineno, f"{self.constant} {what}")

  def value_of(self, variable: str, reading: tuple[str, ...]) -> Any:
    first, *others = self.assigned[variable]
    if others:
      raise self.refusal(others[0], f"cannot be read without running the file: {variable} is "
                         f"assigned here and in line {first.lineno}")
    if first.value is None:
      raise self.refusal(first, f"cannot be read: {variable} is annotated and has no value")
    return self.evaluate(first.value, (*reading, variable))

  def evaluate(self, node: ast.expr, reading: tuple[str, ...]) -> Any:
    match node:
      case ast.Constant():
        return node.value
      case ast.Tuple() | ast.List() | ast.Set():
        parts = [part for child in node.elts for part in (
            self.evaluate(child.value, reading) if isinstance(child, ast.Starred)
            else (self.evaluate(child, reading),))]
        return {ast.Tuple: tuple, ast.List: list, ast.Set: set}[type(node)](parts)
      case ast.Dict():
        pairs: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values):
          read = self.evaluate(value, reading)
          pairs.update(read if key is None else {self.evaluate(key, reading): read})
        return pairs
      case ast.Name() if node.id in self.assigned and node.id not in reading:
        return self.value_of(node.id, reading)
      case ast.Name():
        raise self.refusal(node, f"cannot be read: {node.id} is not a constant at the top of this "
                           "file")
      case ast.UnaryOp() if type(node.op) in _UNARY:
        return _UNARY[type(node.op)](self.evaluate(node.operand, reading))
      case ast.BinOp() if type(node.op) in _BINARY:
        return _BINARY[type(node.op)](self.evaluate(node.left, reading),
                                      self.evaluate(node.right, reading))
    raise self.refusal(node, f"cannot be read without running the file: {ast.unparse(node)} is not "
                       "a literal")


def load_class(folder: str, name: str, base: type[T]) -> type[T]:
  """The one subclass of `base` that the file `folder/name.py` defines first, or FILE.py:NAME.

  Raises:
    UserError: a user's own file fails, or NAME is no subclass of `base`.
  """
  if user_code.is_own(name):
    found = user_code.load(name)
    if not (inspect.isclass(found) and issubclass(found, base)):
      raise UserError(f"{name}: no subclass of {base.__module__}.{base.__name__}, which "
                      f"{folder.rpartition('/')[2]} are")
    return found
  module = importlib.import_module("of_jax." + folder.replace("/", ".") + "." + name)
  for value in vars(module).values():
    if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__:
      return value
  raise LookupError(f"{module.__name__} defines no subclass of {base.__name__}")
