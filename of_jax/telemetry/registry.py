"""The one registry of metrics: id, formula, unit, range, reference, level, family.

It is made of what the families declare in their own files. `load` gives the class that computes.
"""

import functools

from of_jax import config_telemetry, variants
from of_jax.config_telemetry import FOLDER, Declared, Metric
from of_jax.telemetry import user
from of_jax.telemetry.family import Family

# Everything that is measured, by id; `_no_first` is an attribute of an entry, not an entry.
METRICS: dict[str, Metric] = config_telemetry.metrics()


@functools.cache
def load(name: str) -> Family:
  """The family of a name: of a file of of_jax/telemetry/families, or a user's PATH:NAME."""
  if ":" in name:
    return user.load(name)
  return variants.load_class(FOLDER, name, Family)()


def declared(name: str) -> Declared:
  """What a family declares."""
  return config_telemetry.user_family(name) if ":" in name else config_telemetry.families()[name]


def of_activations() -> tuple[str, ...]:
  """The families that an array of activations is enough for."""
  return tuple(name for name, family in config_telemetry.families().items()
               if family.kind == "activations")
