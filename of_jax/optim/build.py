"""Builds the Optax chain that a config names from the roles of the parameters."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import optax

from of_jax import user_code
from of_jax.config import OptimConfig
from of_jax.config.roles import TRAINED_ROLES
from of_jax.errors import UserError
from of_jax.optim.layout import Layout, lay_out
from of_jax.optim.matrices import MatrixView
from of_jax.optim.narrow import narrow
from of_jax.optim.normalize_project import kinds_by_role, nap


def build_optimizer(optim: OptimConfig, schedule: optax.Schedule, roles: Any, axes: Any,
                    shapes: Any) -> optax.GradientTransformation:
  """Builds the chain: clipping by the global norm, the optimiser, factors by role, projection.

  Parameters whose role is not in `optim.train_roles` never change: their update is zero, decay
  included, they have no moments, and their gradients do not count in the norm that is clipped.
  With `norm` alone it is Frankle et al.'s training of nothing but the norms' gains and offsets
  (2003.00152).

  Args:
    optim: resolved.
    schedule: step (from 0) -> learning rate.
    roles: a tree like the parameters whose leaves are roles (of_jax.config.roles.ROLES).
    axes: the same with tuples of logical axes, see of_jax.optim.matrices.
    shapes: the same with arrays or jax.ShapeDtypeStruct.

  Raises:
    ValueError: a leaf without a role, or whose axes are no matrix.
    UserError: no parameter has a role that is trained.
  """
  layout = lay_out(optim, roles, axes, shapes)
  optimizer = _from_config(optim.name)(optim, schedule, layout)
  if optim.moment_dtype == "bfloat16":
    optimizer = narrow(optimizer)
  if any(factor != 1 for factor in jax.tree.leaves(layout.multipliers)):
    optimizer = optax.chain(optimizer, _scale_by_leaf(layout))
  if optim.projection_every is not None:
    optimizer = nap(
        optimizer, optim.projection_every, gains=optim.projection_gains,
        gain_decay=optim.projection_decay, views=layout.views,
        kinds=kinds_by_role(layout, optim.projection_roles, optim.projection_writers))
  clip = [] if optim.clip_norm is None else [optax.clip_by_global_norm(optim.clip_norm)]
  return _train_only(optim.train_roles, optax.chain(*clip, optimizer), roles)


def _from_config(name: str) -> Callable[..., optax.GradientTransformation]:
  """Finds the builder of an optimiser: of the package, or FILE.py:NAME of a user's own."""
  if user_code.is_own(name):
    builder: Callable[..., optax.GradientTransformation] = user_code.load(
        name, f"config.optim.name={name}")
    return builder
  found: Callable[..., optax.GradientTransformation] = importlib.import_module(
      f"of_jax.optim.optimizers.{name}").from_config
  return found


def describe(optim: OptimConfig, layout: Layout) -> dict[str, dict[str, Any]]:
  """Describes what the optimiser does with each parameter, by its path, for config.json.

  `matrices` is [how many, rows, columns], None for vectors and scalars; `projection` a Kind of
  of_jax.optim.normalize_project.
  """
  kinds = (kinds_by_role(layout, optim.projection_roles, optim.projection_writers)
           if optim.projection_every is not None else jax.tree.map(lambda _: "none", layout.roles))

  def row(role: str, view: MatrixView, axes: tuple[str, ...], decay: float, factor: float,
          init: float, kind: str) -> dict[str, Any]:
    return {"role": role, "trained": role in optim.train_roles,
            "axes": list(axes), "shape": list(view.shape),
            "matrices": [view.batch, view.rows, view.columns] if view.is_matrix else None,
            "weight_decay": layout.weight_decay * decay, "lr_multiplier": factor,
            "init_multiplier": init, "projection": kind}

  rows = jax.tree.map(row, layout.roles, layout.views, layout.axes, layout.decays,
                      layout.multipliers, layout.init, kinds)
  leaves = jax.tree_util.tree_leaves_with_path(rows, is_leaf=lambda node: "role" in node)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _train_only(train_roles: tuple[str, ...], optimizer: optax.GradientTransformation,
                roles: Any) -> optax.GradientTransformation:
  if set(train_roles) == set(TRAINED_ROLES):
    return optimizer
  labels = jax.tree.map(lambda role: "train" if role in train_roles else "freeze", roles)
  if "train" not in jax.tree.leaves(labels):
    raise UserError(f"config.optim.train_roles={','.join(train_roles)}: this model's parameters "
                    f"have the roles {', '.join(sorted(set(jax.tree.leaves(roles))))}")
  return optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, labels)


def _scale_by_leaf(layout: Layout) -> optax.GradientTransformation:
  """Multiplies the whole step, decay included: a learning rate by role."""
  return optax.stateless(lambda updates, _: jax.tree.map(
      lambda factor, u: u if isinstance(u, optax.MaskedNode) else factor * u,
      layout.multipliers, updates))
