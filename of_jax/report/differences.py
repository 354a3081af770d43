"""Differences between configs, for people. Enters: configs by name. Leaves: what is not as in most.
"""

import collections
from collections.abc import Mapping
from typing import Any

from of_jax.claims.study_record import flatten, varying
from of_jax.config import Config
from of_jax.config.rules import optim as optim_rules
from of_jax.config.values import show


def differing(configs: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
  """Finds of each config the fields whose value is not that of most, of what tells them apart."""
  flat = {name: flatten(config) for name, config in configs.items()}
  usual = {field: collections.Counter(str(values[field]) for values in flat.values()
                                      ).most_common(1)[0][0]
           for field in varying(list(configs.values()))}
  # What an optimiser does not read is none in its run, and says nothing.
  not_everybodys = {f"optim.{field}" for field in optim_rules.all_own_fields()}
  return {name: {field: values[field] for field, value in usual.items()
                 if str(values[field]) != value
                 and not (values[field] is None and field in not_everybodys)}
          for name, values in flat.items()}


def in_words(differences: Mapping[str, Any]) -> str:
  """Writes fields as one types them, without their sections."""
  return ", ".join(f"{field.rpartition('.')[2]}={show(value)}"
                   for field, value in differences.items())
