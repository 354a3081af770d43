"""From parameter roles to an Optax chain."""

import importlib
from typing import Any

import jax
import optax

from of_jax.config import OptimConfig
from of_jax.config_rules import TRAINED_ROLES
from of_jax.errors import UserError


def build_optimizer(optim: OptimConfig, schedule: optax.Schedule,
                    roles: Any) -> optax.GradientTransformation:
  """Clipping by the global norm, then the optimiser that the config names.

  Parameters whose role is not in `optim.train_roles` never change: their update is zero, decay
  included, they have no moments, and their gradients do not count in the norm that is clipped.
  With `norm` alone it is Frankle et al.'s training of nothing but the norms' gains and offsets
  (2003.00152).

  Args:
    optim: resolved.
    schedule: step (from 0) -> learning rate.
    roles: a tree like the parameters whose leaves are roles (of_jax.config_rules.ROLES).

  Raises:
    UserError: no parameter has a role that is trained.
  """
  decay_mask = jax.tree.map(lambda role: role in optim.decay_roles, roles)
  optimizer = importlib.import_module(f"of_jax.optim.optimizers.{optim.name}")
  chain = [optimizer.from_config(optim, schedule, decay_mask)]
  if optim.clip_norm is not None:
    chain.insert(0, optax.clip_by_global_norm(optim.clip_norm))
  return _train_only(optim.train_roles, optax.chain(*chain), roles)


def _train_only(train_roles: tuple[str, ...], optimizer: optax.GradientTransformation,
                roles: Any) -> optax.GradientTransformation:
  if set(train_roles) == set(TRAINED_ROLES):
    return optimizer
  labels = jax.tree.map(lambda role: "train" if role in train_roles else "freeze", roles)
  if "train" not in jax.tree.leaves(labels):
    raise UserError(f"config.optim.train_roles={','.join(train_roles)}: this model's parameters "
                    f"have the roles {', '.join(sorted(set(jax.tree.leaves(roles))))}")
  return optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, labels)
