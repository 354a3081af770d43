"""Variants by name: a folder of files, each holding one class or function that a config names.

`of_jax/models/blocks/op.py` is what `model.block=op` means. The folder is the table, so a new
variant is one new file, and the config can check a name without importing jax.
"""

import ast
import functools
import importlib
import inspect
import pathlib
from typing import Any, TypeVar

# Where the folders are looked for. Tests add a root of their own, see tests/planted.py.
_ROOTS = [pathlib.Path(__file__).parent]

FOLDERS = ("models/blocks", "models/norms", "models/mlps", "models/softmaxes", "models/gates")

T = TypeVar("T")


def names(folder: str) -> tuple[str, ...]:
  """The names to choose from in `folder` (relative to the package), sorted."""
  return tuple(sorted(path.stem for root in _ROOTS for path in (root / folder).glob("*.py")
                      if path.stem != "__init__"))


def file_of(folder: str, name: str) -> pathlib.Path:
  """The file `folder/name.py`.

  Raises:
    LookupError: there is none.
  """
  for root in _ROOTS:
    if (path := root / folder / f"{name}.py").is_file():
      return path
  raise LookupError(f"of_jax/{folder} holds no file {name}.py")


@functools.cache
def literal(folder: str, name: str, constant: str) -> Any:
  """The value of a constant at the top of the file `folder/name.py`, without running the file.

  So a variant declares in its own file what the config checks before jax is imported.
  """
  for node in ast.parse(file_of(folder, name).read_text()).body:
    if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [constant]:
      return ast.literal_eval(node.value)
  raise LookupError(f"{folder}/{name}.py states no {constant}")


def load_class(folder: str, name: str, base: type[T]) -> type[T]:
  """The one subclass of `base` that the file `folder/name.py` defines first."""
  module = importlib.import_module("of_jax." + folder.replace("/", ".") + "." + name)
  for value in vars(module).values():
    if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__:
      return value
  raise LookupError(f"{module.__name__} defines no subclass of {base.__name__}")
