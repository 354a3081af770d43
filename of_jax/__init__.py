"""of_jax: study outlier features in neural-network training, from a laptop to a TPU pod.

Subpackages load on first use, so that a config error is reported before jax is imported.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = ("analysis", "data", "interop", "models", "optim", "telemetry", "train")


def __getattr__(name: str) -> ModuleType:
  if name in _SUBPACKAGES:
    return importlib.import_module(f"of_jax.{name}")
  raise AttributeError(f"module 'of_jax' has no attribute {name!r}")
