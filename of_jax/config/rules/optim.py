"""Rules of the optimiser's fields: which optimiser reads which, and multipliers by role.

An optimiser's file states `FIELDS`, its own fields with their defaults, see of_jax.config.traits.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from of_jax import variants
from of_jax.config import traits
from of_jax.config.declare import Owner
from of_jax.config.rules.check import Check
from of_jax.config.rules.fields import check_owners, default
from of_jax.config.sections import Config, OptimConfig
from of_jax.errors import UserError, nearest

FOLDER = traits.OPTIMIZERS
NORMS = ("rows", "columns", "matrix", "spectrum")


def own_fields(optimizer: str) -> dict[str, Any]:
  """Fields that one optimiser reads beside what all of them share, each with its default.

  Raises:
    BadVariant: its file names a field that the config does not declare for optimisers.
  """
  declared = [field.name for field in dataclasses.fields(OptimConfig)
              if field.metadata["owner"] == Owner("optim.name")]
  own = dict(traits.optimizer(optimizer).fields)
  for name in own:
    if name not in declared:
      raise variants.fault(FOLDER, optimizer, "FIELDS", f"has {name}, which config.optim does not "
                           f"declare as a field of optimisers{nearest(name, declared)}")
  return own


def all_own_fields() -> dict[str, list[str]]:
  """Maps every field that belongs to some optimisers to their names."""
  owners: dict[str, list[str]] = {}
  for optimizer in variants.names(FOLDER):
    for field in own_fields(optimizer):
      owners.setdefault(field, []).append(optimizer)
  return owners


def parse_multipliers(texts: Iterable[str], roles: Sequence[str]) -> dict[str, float]:
  """Reads `("embedding=0.1", "gain=3")` as role -> factor; roles that are not named have 1.

  Raises:
    UserError: no number, a negative one, a role that there is not, or one named twice.
  """
  factors: dict[str, float] = {}
  for text in texts:
    role, _, number = text.partition("=")
    if role not in roles:
      raise UserError(f"config.optim.lr_multipliers={text}: {role} is not a parameter role"
                      + nearest(role, roles, otherwise=f"; they are {', '.join(roles)}"))
    try:
      factor = float(number)
    except ValueError:
      factor = -1.0
    if not 0 <= factor < float("inf"):
      raise UserError(f"config.optim.lr_multipliers={text}: not a role and a number that is not "
                      "negative, as in embedding=0.1")
    if role in factors:
      raise UserError(f"config.optim.lr_multipliers={text}: {role} is named twice")
    factors[role] = factor
  return {role: factors.get(role, 1.0) for role in roles}


def validate(config: Config, check: Check, roles: Sequence[str]) -> None:
  """Checks what the fields of a resolved optimiser must satisfy; `check` raises what fails."""
  optim = config.optim
  for field in ("decay_roles", "train_roles", "projection_roles"):
    unknown = [r for r in getattr(optim, field) if r not in roles]
    check(not unknown, f"optim.{field}",
          f"{', '.join(unknown)} is not a parameter role; they are {', '.join(roles)}")
  check(bool(optim.train_roles), "optim.train_roles",
        f"nothing would be trained; give some of {', '.join(roles)}")
  check(optim.decay_norm_offsets or "norm" in optim.decay_roles, "optim.decay_norm_offsets",
        "no norm decays: add norm to optim.decay_roles")
  parse_multipliers(optim.lr_multipliers, roles)
  _check_own_fields(optim, check)
  _check_scaling(config, check)
  if optim.projection_every is None:
    for field in ("projection_roles", "projection_writers", "projection_gains",
                  "projection_decay"):
      check(getattr(optim, field) == default(f"optim.{field}"), f"optim.{field}",
            "does nothing without projections; set optim.projection_every=1")
  check_owners(config, "optim", check)
  assert optim.warmup_steps is not None
  check(optim.decay_steps is None or optim.decay_steps <= config.train.steps, "optim.decay_steps",
        f"is longer than the training, train.steps={config.train.steps}")
  check(optim.warmup_steps <= config.train.steps, "optim.warmup_steps",
        f"the warmup is longer than the training, train.steps={config.train.steps}")


def _check_own_fields(optim: OptimConfig, check: Check) -> None:
  """Checks the fields that some optimisers read and others do not."""
  own = own_fields(optim.name)
  for field, owners in all_own_fields().items():
    check(field in own or getattr(optim, field) is None, f"optim.{field}",
          f"optim.name={optim.name} does not read it; {_listed(owners)} "
          f"do{'es' if len(owners) == 1 else ''}")
  if optim.norms is not None:
    unknown = [norm for norm in optim.norms if norm not in NORMS]
    check(not unknown and bool(optim.norms), "optim.norms",
          f"not a list of {', '.join(NORMS)}")
  if optim.nesterov:
    check(optim.momentum != 0, "optim.nesterov", "does nothing without optim.momentum")
  check(optim.momentum != 0 or optim.moment_dtype == default("optim.moment_dtype"),
        "optim.moment_dtype", f"optim.name={optim.name} keeps no moments without optim.momentum")
  check(optim.shampoo_beta is None or traits.optimizer(optim.name).sums_factors
        or optim.shampoo_beta < 1,
        "optim.shampoo_beta", f"must be below 1 in {optim.name}, whose factors are averages")


def _check_scaling(config: Config, check: Check) -> None:
  """Checks that the rule for widths has what it needs."""
  optim = config.optim
  if optim.scaling == "none":
    check(optim.base_width is None, "optim.base_width", "does nothing without optim.scaling=mup")
    return
  check(optim.base_width is not None, "optim.base_width",
        f"optim.scaling={optim.scaling} needs the width at which the rates were found")
  adams = [name for name in variants.names(FOLDER) if traits.optimizer(name).is_adam]
  check(traits.optimizer(optim.name).is_adam, "optim.scaling",
        f"is a rule for Adam, not for optim.name={optim.name}; {_listed(adams)} are Adam")
  check(config.model.attention_init == default("model.attention_init"), "model.attention_init",
        "already goes by the width, which optim.scaling would do once more")
  check(not config.model.tied_embeddings, "optim.scaling",
        "scales the unembedding and not the embedding; set model.tied_embeddings=false")


def _listed(names: Sequence[str]) -> str:
  return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
