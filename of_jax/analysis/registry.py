"""Analyses of a run's checkpoints by name: for command lines, studies and figures. Imports no jax.

An analysis takes a run directory and the steps of its checkpoints, and leaves one object for JSON,
whose `analysis` is its name. A new one is a function of that name in this room, a row here, and a
function of the same name in of_jax.report.analysis_panels, which draws the object.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# (run directory, steps) -> an object for JSON.
Function = Callable[[Path, Sequence[int]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Analysis:
  """An analysis, as people and command lines need to know it.

  Attributes:
    title: heading of its figures.
    module: of of_jax.analysis, which holds the function of the analysis's name.
    reads_data: whether it reads data, which are always the run's own evaluation tokens.
  """

  title: str
  module: str
  reads_data: bool


ANALYSES: Mapping[str, Analysis] = {
    "composition": Analysis("Composition of heads", "over_training", reads_data=False),
    "outlier_dimensions": Analysis("Outlier dimensions", "over_training", reads_data=True),
    "quantised": Analysis("Quantised", "quantisation", reads_data=True),
    "sparsity": Analysis("Sparsity", "over_training", reads_data=True),
    "spectra": Analysis("Spectra", "over_training", reads_data=False),
}


def load(name: str) -> Function:
  """Loads the function of an analysis, which brings jax.

  Raises:
    KeyError: no such analysis.
  """
  module = importlib.import_module(f"of_jax.analysis.{ANALYSES[name].module}")
  function: Function = getattr(module, name)
  return function
