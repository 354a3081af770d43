"""Variants by name: a folder of files, each holding one class or function that a config names.

`of_jax/models/blocks/op.py` is what `model.block=op` means. The folder is the table, so a new
variant is one new file, and the config can check a name without importing jax.
"""

import importlib
import inspect
import pathlib
from typing import TypeVar

_ROOT = pathlib.Path(__file__).parent

FOLDERS = ("models/blocks", "models/norms", "models/mlps", "models/softmaxes", "models/gates")

T = TypeVar("T")


def names(folder: str) -> tuple[str, ...]:
  """The names to choose from in `folder` (relative to the package), sorted."""
  return tuple(sorted(p.stem for p in (_ROOT / folder).glob("*.py") if p.stem != "__init__"))


def load_class(folder: str, name: str, base: type[T]) -> type[T]:
  """The one subclass of `base` that the file `folder/name.py` defines first."""
  module = importlib.import_module("of_jax." + folder.replace("/", ".") + "." + name)
  for value in vars(module).values():
    if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__:
      return value
  raise LookupError(f"{module.__name__} defines no subclass of {base.__name__}")
