"""Identity of a checkpoint: the step and the run of what it keeps beside its arrays, for JSON.

Enters: what a run keeps. Leaves: the same, sealed with a sum, so that a part of a checkpoint that
comes from another step or run is known by it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from of_jax import config as config_lib
from of_jax.config import SCHEMA, SCHEMA_VERSION, Config
from of_jax.storage.digest import Damaged
from of_jax.storage.run_directory import METADATA

_STEP, _CONFIG, _SUM = "step", "config", "sum"


def sealed(step: int, kept: Mapping[str, Any], config: Config | None) -> dict[str, Any]:
  """Makes what is saved beside a state: what the run keeps, the step, the config, and a sum."""
  found = {SCHEMA: SCHEMA_VERSION, _STEP: step, **kept}
  if config is not None:
    found[_CONFIG] = config_lib.to_dict(config)
  return {**found, _SUM: _sha256(found)}


def opened(found: Mapping[str, Any], step: int) -> dict[str, Any] | None:
  """Checks what `sealed` made and gives it back; None of a checkpoint of schema 1.

  Raises:
    Damaged: it is not what was saved, or is that of another step.
  """
  if SCHEMA not in found:
    return None
  # Those before it have neither.
  if _SUM in found or _STEP in found:
    if found.get(_SUM) != _sha256({name: value for name, value in found.items() if name != _SUM}):
      raise Damaged(f"its {METADATA} is not what was written")
    if found.get(_STEP) != step:
      raise Damaged(f"its {METADATA} is of step {found.get(_STEP)}")
  return dict(found)


def words(sealed_or_opened: Mapping[str, Any] | None) -> np.ndarray:
  """Makes the uint32 [8] by which arrays show whose they are: the SHA-256 of their run's config;
  zeros where none is kept."""
  config = (sealed_or_opened or {}).get(_CONFIG)
  if config is None:
    return np.zeros(8, np.uint32)
  return np.frombuffer(bytes.fromhex(_sha256(config)), ">u4").astype(np.uint32)


def check_config(kept: Mapping[str, Any] | None, config: Mapping[str, Any]) -> None:
  """Checks that a checkpoint is of the run of this config, as far as it says.

  Args:
    kept: what `opened` gives.
    config: the run's, as config.json has it.

  Raises:
    Damaged: it is of another config's; the fields that differ are named.
  """
  theirs = (kept or {}).get(_CONFIG, {})
  changed = [f"{section}.{name} {value} there, {config.get(section, {}).get(name)} here"
             for section, fields in theirs.items() for name, value in fields.items()
             if value != config.get(section, {}).get(name)]
  if changed:
    more = f", and {len(changed) - 2} more" if len(changed) > 2 else ""
    raise Damaged(f"it is of the run of another config ({', '.join(changed[:2])}{more})")


def _sha256(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
