"""From parameter roles to an Optax chain."""

import importlib
from typing import Any

import jax
import optax

from of_jax.config import OptimConfig
from of_jax.optim.layout import Layout, lay_out
from of_jax.optim.normalize_project import kinds_by_role, nap


def build_optimizer(optim: OptimConfig, schedule: optax.Schedule, roles: Any, axes: Any,
                    shapes: Any) -> optax.GradientTransformation:
  """Clipping by the global norm, the optimiser that the config names, factors, projection.

  Args:
    optim: resolved.
    schedule: step (from 0) -> learning rate.
    roles: a tree like the parameters whose leaves are roles (of_jax.config_rules.ROLES).
    axes: the same with tuples of logical axes, see of_jax.optim.matrices.
    shapes: the same with arrays or jax.ShapeDtypeStruct.

  Raises:
    ValueError: a leaf without a role, or whose axes are no matrix.
  """
  layout = lay_out(optim, roles, axes, shapes)
  module = importlib.import_module(f"of_jax.optim.optimizers.{optim.name}")
  optimizer: optax.GradientTransformation = module.from_config(optim, schedule, layout)
  if any(factor != 1 for factor in jax.tree.leaves(layout.multipliers)):
    optimizer = optax.chain(optimizer, _scale_by_leaf(layout))
  if optim.projection_every is not None:
    optimizer = nap(
        optimizer, optim.projection_every, gains=optim.projection_gains,
        gain_decay=optim.projection_decay, views=layout.views,
        kinds=kinds_by_role(layout, optim.projection_roles, optim.projection_writers))
  if optim.clip_norm is None:
    return optax.chain(optimizer)
  return optax.chain(optax.clip_by_global_norm(optim.clip_norm), optimizer)


def _scale_by_leaf(layout: Layout) -> optax.GradientTransformation:
  """Factors of the whole step, decay included: a learning rate by role."""
  return optax.stateless(lambda updates, _: jax.tree.map(
      lambda factor, u: u if isinstance(u, optax.MaskedNode) else factor * u,
      layout.multipliers, updates))
