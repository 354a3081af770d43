"""Variants that are there for one test: files in a root of their own beside the package's."""

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from of_jax import variants


@contextlib.contextmanager
def planted(root: Path, files: Mapping[str, str]) -> Iterator[None]:
  """Has of_jax find more variants, until the block is left.

  Args:
    root: an empty folder.
    files: path inside of_jax, as `models/norms/mine.py`, -> what the file says.
  """
  packages = []
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    packages.append(importlib.import_module(
        "of_jax." + str(Path(name).parent).replace("/", ".")))
  variants._ROOTS.append(root)
  for package, name in zip(packages, files):
    package.__path__.append(str((root / name).parent))
  forget()
  try:
    yield
  finally:
    variants._ROOTS.remove(root)
    for package, name in zip(packages, files):
      package.__path__.remove(str((root / name).parent))
      sys.modules.pop("of_jax." + name.removesuffix(".py").replace("/", "."), None)
    forget()


def forget() -> None:
  """Clears what functions of this project have kept of the variants that there are."""
  importlib.invalidate_caches()
  for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "of_jax":
      for value in list(vars(module).values()):
        if isinstance(value, functools._lru_cache_wrapper):
          value.cache_clear()
