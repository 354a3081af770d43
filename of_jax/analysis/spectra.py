"""Singular spectra of the weights over training. Enters: parameters of checkpoints. Leaves: top
singular values and stable ranks, matrix by matrix, for the weight-decay rule (Fan et al. 2025,
2510.15262: in the steady state the spectrum has the size sqrt(learning rate / decay)).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from of_jax.analysis.evaluation import network_of
from of_jax.config import Config
from of_jax.models.functional import Parameters, named_leaves
from of_jax.optim.matrices import views

Floats = npt.NDArray[np.float64]


def spectrum(matrix: npt.NDArray[np.floating[Any]]) -> dict[str, float]:
  """Computes `top_singular_value` s_1, `frobenius_norm` |W|_F, `stable_rank` |W|_F^2 / s_1^2.

  In float64. The stable rank of a matrix of zeros is NaN; else it lies between 1 and the rank.
  """
  values: Floats = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
  top, square = float(values[0]), float(np.square(values).sum())
  return {"top_singular_value": top, "frobenius_norm": square ** 0.5,
          "stable_rank": square / top ** 2 if top else float("nan")}


def spectra(config: Config, params: Parameters) -> dict[str, list[dict[str, float]]]:
  """Computes of every matrix of role `hidden`: parameter's path -> `spectrum` of each layer.

  Rows are inputs and columns outputs; the heads' outputs are the columns of one matrix.
  """
  network = network_of(config)
  leaves, roles = named_leaves(params), named_leaves(network.roles)
  found = {}
  for name, view in named_leaves(views(network.axes, network.shapes)).items():
    if roles[name] == "hidden" and view.is_matrix:
      matrices = np.asarray(view.split(leaves[name]))
      found[name] = [spectrum(matrix) for matrix in matrices]
  return found
