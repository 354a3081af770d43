"""Windows of text and of tokens, with the begin token and without, against PyTorch."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.analysis import imported, replay
from of_jax.data import special_tokens
from tests.fidelity import Comparison
from tests.golden import special_tokens as folders
from tests.golden import windows

GOLDEN = Path(windows.__file__).with_suffix(".json")
SPECIAL = Path(folders.__file__).with_suffix(".json")


def ids_that_differ() -> float:
  """Counts begin and end tokens, and texts begun or not, that are not transformers'."""
  wrong = 0
  for name, golden in json.loads(SPECIAL.read_text()).items():
    with tempfile.TemporaryDirectory() as folder:
      found = special_tokens.of_folder(folders.save(Path(folder), name))
    begun = len(golden["ids"]) > len(golden["plain"]) and golden["ids"][0] == golden["begin"]
    wrong += (found.end, found.begin, found.begins) != (golden["end"], golden["begin"], begun)
  return float(wrong)


@functools.lru_cache
def measured(form: str) -> dict[str, dict[str, Any]]:
  """Measures what the golden has of a form: no, yes and given."""
  with tempfile.TemporaryDirectory() as folder:
    model = imported.load(windows.save_folder(Path(folder), form))
    stream = replay.encode(model, [windows.TEXT], "--text")
  length, begin = windows.LENGTH, model.special.begin
  assert begin is not None
  config = dataclasses.replace(model.config, train=dataclasses.replace(
      model.config.train, sequence_length=length))
  batches = replay.token_batches(config, stream, "--text")
  rows = stream[:len(stream) // length * length].reshape(-1, length)
  each = {"no": batches, "yes": replay.begin_windows(batches, begin),
          "given": replay.token_batches(config, rows, "--tokens")}
  return {name: model.measure(made, ("resid_pre",), ("kurtosis", "max_abs"))
          for name, made in each.items()}


def of_losses() -> float:
  """Finds the largest relative difference of a loss."""
  return max(abs(measured(form)[name]["loss"] / golden[name]["loss"] - 1)
             for form, golden in json.loads(GOLDEN.read_text()).items()
             for name in ("no", "yes", "given"))


def of_streams() -> float:
  """Finds the largest relative difference of a layer's kurtosis or largest magnitude."""
  return float(max(
      np.abs(np.divide(measured(form)[name]["telemetry"]["resid_pre"][metric],
                       golden[name][metric]) - 1).max()
      for form, golden in json.loads(GOLDEN.read_text()).items()
      for name in ("no", "yes", "given") for metric in ("kurtosis", "max_abs")))


_AGAINST = "transformers (huggingface/transformers) on PyTorch"
COMPARISONS = [
    Comparison("begin and end tokens of tokenizers, and whether a text is begun",
               "transformers (huggingface/transformers)", "5.24.0", "2026-11-27",
               "tokenizers that differ, of 8", ids_that_differ, 0),
    Comparison("loss over a text's windows, with the begin token and without, and over given ones",
               _AGAINST, "5.24.0 on 2.13.0", "2026-11-27", "largest relative difference of a loss",
               of_losses, 1e-5, slow=True),
    Comparison("kurtosis and largest magnitude of the stream over whole windows, likewise",
               _AGAINST, "5.24.0 on 2.13.0", "2026-11-27",
               "largest relative difference of a layer", of_streams, 1e-4, slow=True),
]
