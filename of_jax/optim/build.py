"""From parameter roles to an Optax chain."""

import importlib
from typing import Any

import jax
import optax

from of_jax.config import OptimConfig


def build_optimizer(optim: OptimConfig, schedule: optax.Schedule,
                    roles: Any) -> optax.GradientTransformation:
  """Clipping by the global norm, then the optimiser that the config names.

  Args:
    optim: resolved.
    schedule: step (from 0) -> learning rate.
    roles: a tree like the parameters whose leaves are roles (of_jax.config_rules.ROLES).
  """
  decay_mask = jax.tree.map(lambda role: role in optim.decay_roles, roles)
  optimizer = importlib.import_module(f"of_jax.optim.optimizers.{optim.name}")
  chain = [optimizer.from_config(optim, schedule, decay_mask)]
  if optim.clip_norm is not None:
    chain.insert(0, optax.clip_by_global_norm(optim.clip_norm))
  return optax.chain(*chain)
