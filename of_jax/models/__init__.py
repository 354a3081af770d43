"""Networks as Flax NNX modules that know nothing of training; sites are probed by name.

`build_network` makes the pure functions of a config's network. A block, norm, MLP, softmax or gate
of one's own subclasses the base in its folder's `__init__.py`; what it is called with beside its
input is a `Context`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from of_jax.models.functional import Network, Parameters, build_network, named_leaves
  from of_jax.models.probe import SITES, Context
  from of_jax.models.stack import StackedNetwork, stacked

__all__ = ["SITES", "Context", "Network", "Parameters", "StackedNetwork", "build_network",
           "named_leaves", "stacked"]

# On first use, since some modules beside them are read before jax is imported.
_FILES = {"SITES": "probe", "Context": "probe", "StackedNetwork": "stack", "stacked": "stack"}


def __getattr__(name: str) -> Any:
  if name in __all__:
    return getattr(importlib.import_module(f"of_jax.models.{_FILES.get(name, 'functional')}"), name)
  raise AttributeError(f"module 'of_jax.models' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
