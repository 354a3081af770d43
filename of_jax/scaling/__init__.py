"""Laws of how numbers grow with size: fits, intervals, forecasts of new runs, comparisons.

Enters: a folder of runs or a CSV file. Leaves: what fit.json holds. Modules load on first use.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from of_jax.scaling.analysis import Options, analyse
  from of_jax.scaling.table import Table, read_csv
  from of_jax.scaling.variables import read_root

__all__ = ["Options", "Table", "analyse", "read_csv", "read_root"]

_MODULES = {"Options": "analysis", "analyse": "analysis", "Table": "table", "read_csv": "table",
            "read_root": "variables"}


def __getattr__(name: str) -> Any:
  # On first use, as the rest of the package.
  if name in _MODULES:
    return getattr(importlib.import_module(f"of_jax.scaling.{_MODULES[name]}"), name)
  if not name.startswith("_") and importlib.util.find_spec(f"of_jax.scaling.{name}"):
    return importlib.import_module(f"of_jax.scaling.{name}")
  raise AttributeError(f"module 'of_jax.scaling' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
