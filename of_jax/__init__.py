"""of_jax: study outlier features in neural-network training, from a laptop to a TPU pod.

Every room is an attribute that is imported on first use, as in `of_jax.telemetry.measure`, so that
`import of_jax` costs nothing and a config error is reported before jax is imported.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from of_jax import (
      analysis,
      claims,
      commands,
      config,
      cost_model,
      data,
      errors,
      interop,
      models,
      objectives,
      optim,
      quantise,
      report,
      scaling,
      signals,
      storage,
      sweep,
      telemetry,
      train,
      user_code,
      variants,
      xla,
  )
  from of_jax.config import baselines, presets
  from of_jax.storage import run_directory

__version__ = "0.1.0"

__all__ = [
    "analysis", "baselines", "claims", "commands", "config", "cost_model", "data", "errors",
    "interop", "models", "objectives", "optim", "presets", "quantise", "report", "run_directory",
    "scaling", "signals", "storage", "sweep", "telemetry", "train", "user_code", "variants", "xla"]

# Modules inside of rooms that config files and notebooks ask for by `from of_jax import NAME`.
_INSIDE = {"baselines": "config.baselines", "presets": "config.presets",
           "run_directory": "storage.run_directory"}


def __getattr__(name: str) -> ModuleType:
  if name in __all__:
    return importlib.import_module(f"of_jax.{_INSIDE.get(name, name)}")
  raise AttributeError(f"module 'of_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
