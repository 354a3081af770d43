"""The one registry of metrics: id, formula, unit, range, reference, level, family.

It is made of what the families declare in their own files. `load` gives the class that computes.
"""

import functools

from of_jax import variants
from of_jax.config import declared_metrics
from of_jax.config.declared_metrics import FOLDER, Declared, Metric
from of_jax.telemetry import user
from of_jax.telemetry.family import Family

# Everything that is measured, by id; `_no_first` is an attribute of an entry, not an entry.
METRICS: dict[str, Metric] = declared_metrics.metrics()


@functools.cache
def load(name: str) -> Family:
  """Loads the family of a name: of a file of of_jax/telemetry/families, or a user's PATH:NAME."""
  if ":" in name:
    return user.load(name)
  return variants.load_class(FOLDER, name, Family)()


def declared(name: str) -> Declared:
  """Reads what a family declares."""
  return declared_metrics.user_family(name) if ":" in name else declared_metrics.families()[name]


def of_activations() -> tuple[str, ...]:
  """Lists the families that an array of activations is enough for."""
  return tuple(name for name, family in declared_metrics.families().items()
               if family.kind == "activations")
