"""Reads run directories and measures checkpoints again, without the trainer.

`load_run` and `load_runs` give numbers of runs as arrays and tables, without jax; `restore` gives a
checkpoint as a model, to be measured, changed on the way, quantised or analysed. Modules and
functions load on first use.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from of_jax.analysis.replay import restore
  from of_jax.analysis.runs import load_run, load_runs

__all__ = ["load_run", "load_runs", "restore"]

_MODULES = {"load_run": "runs", "load_runs": "runs", "restore": "replay"}


def __getattr__(name: str) -> Any:
  # On first use, since some bring jax, which reading numbers does without.
  if name in _MODULES:
    return getattr(importlib.import_module(f"of_jax.analysis.{_MODULES[name]}"), name)
  if not name.startswith("_") and importlib.util.find_spec(f"of_jax.analysis.{name}"):
    return importlib.import_module(f"of_jax.analysis.{name}")
  raise AttributeError(f"module 'of_jax.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
