"""Logits of small models with configs of public repositories, against transformers."""

import collections
import functools
import tempfile
from pathlib import Path

import numpy as np

from of_jax.interop import load
from tests.fidelity import Comparison
from tests.golden import public_configs

TOLERANCE = 2e-4
# Name of a config -> what the one line says that refuses it.
REFUSED = {
    "olmo3_32b": "model_type=olmo3: is not one that of_jax has",
    "phi_1": "model_type=phi: is not one that of_jax has",
    "stablelm_2": "model_type=stablelm: is not one that of_jax has",
}


@functools.cache
def _golden() -> dict[str, np.ndarray]:
  with np.load(Path(public_configs.__file__).with_suffix(".npz")) as file:
    return dict(file)


@functools.cache
def logit_error(name: str) -> float:
  """Returns the largest difference of a logit of the config's model from theirs."""
  with tempfile.TemporaryDirectory() as folder:
    model = load(public_configs.save_folder(Path(folder), name))
  ours = model.logits(public_configs.TOKENS)[:, public_configs.KEPT]
  return float(np.abs(ours.astype(np.float64) - _golden()[name]).max())


def _family_error(names: list[str]) -> float:
  return max(map(logit_error, names))


def _families() -> dict[str, list[str]]:
  found = collections.defaultdict(list)
  for name, entry in public_configs.CONFIGS.items():
    if name not in REFUSED:
      found[entry["config"]["model_type"]].append(name)
  return dict(sorted(found.items()))


COMPARISONS = [
    Comparison(f"public configs: {kind}, {len(names)} cut to a small model",
               "transformers, float32, eager", "5.24.0", "2026-11-27",
               "largest difference of a logit", functools.partial(_family_error, names), TOLERANCE,
               slow=True)
    for kind, names in _families().items()
]
