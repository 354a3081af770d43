"""Facts that an optimiser reads of each parameter: its role, its matrices, and what decays."""

import dataclasses
from typing import Any

import jax

from of_jax.config import OptimConfig
from of_jax.config.roles import ROLES
from of_jax.config.rules.optim import parse_multipliers
from of_jax.optim import matrices
from of_jax.optim.scaling import Factors, factors


@dataclasses.dataclass(frozen=True)
class Layout:
  """Roles, matrix views, axes and decay of the parameters, as trees like them.

  Attributes:
    roles: one of of_jax.config.roles.ROLES each.
    views: of_jax.optim.matrices.MatrixView.
    axes: tuples of logical axes.
    decays: weight decay over `weight_decay`; 0 for those that do not decay.
    multipliers: learning rate over the schedule's.
    weight_decay: coefficient. A step decays by the product of both with the learning rate.
    init: factors of the initial standard deviation.
  """

  roles: Any
  views: Any
  axes: Any
  decays: Any
  multipliers: Any
  weight_decay: float
  init: Any

  def hidden_matrices(self) -> Any:
    """Mask of the matrices between the embedding and the unembedding, a tree of booleans."""
    return jax.tree.map(lambda role, view: role == "hidden" and view.is_matrix,
                        self.roles, self.views)


def _is_offset(path: Any, role: str) -> bool:
  """Tells whether a parameter is what a norm adds, and not what it multiplies by."""
  return role == "norm" and jax.tree_util.keystr(path[-1:], simple=True) == "bias"


def lay_out(optim: OptimConfig, roles: Any, axes: Any, shapes: Any) -> Layout:
  """Builds the layout of a resolved config's parameters.

  Raises:
    ValueError: a leaf without a role, or whose axes are no matrix.
  """
  for path, role in jax.tree_util.tree_leaves_with_path(
      roles, is_leaf=lambda node: not isinstance(node, dict)):
    if role not in ROLES:
      raise ValueError(f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')} has "
                       f"the role {role}, not one of {', '.join(ROLES)}")
  asked = parse_multipliers(optim.lr_multipliers, ROLES)
  scaled = factors(optim, roles, axes, shapes)

  def decay(path: Any, role: str, factor: Factors) -> float:
    acts = role in optim.decay_roles and (optim.decay_norm_offsets or not _is_offset(path, role))
    return factor.weight_decay if acts else 0.0

  return Layout(
      roles, matrices.views(axes, shapes), axes,
      jax.tree_util.tree_map_with_path(decay, roles, scaled),
      jax.tree.map(lambda role, factor: asked[role] * factor.learning_rate, roles, scaled),
      optim.weight_decay, jax.tree.map(lambda factor: factor.init, scaled))
