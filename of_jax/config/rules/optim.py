"""Rules of the optimiser's fields: which optimiser reads which, and multipliers by role.

An optimiser's file states `FIELDS`, its own fields with their defaults, as a literal; it is read
here without importing the file, and jax with it.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from of_jax import variants
from of_jax.config.rules.check import Check
from of_jax.config.sections import Config
from of_jax.errors import UserError

FOLDER = "optim/optimizers"
# Those whose update does not depend on the gradient's size, for which the scaling rules hold.
_ADAMS = ("adamp", "adamw")
NORMS = ("rows", "columns", "matrix", "spectrum")


def own_fields(optimizer: str) -> dict[str, Any]:
  """The fields that one optimiser reads beside what all of them share, each with its default."""
  fields: dict[str, Any] = variants.literal(FOLDER, optimizer, "FIELDS")
  return fields


def all_own_fields() -> dict[str, list[str]]:
  """Every field that belongs to some optimisers -> their names."""
  owners: dict[str, list[str]] = {}
  for optimizer in variants.names(FOLDER):
    for field in own_fields(optimizer):
      owners.setdefault(field, []).append(optimizer)
  return owners


def parse_multipliers(texts: Iterable[str], roles: Sequence[str]) -> dict[str, float]:
  """`("embedding=0.1", "gain=3")` -> role -> factor; roles that are not named have 1.

  Raises:
    UserError: no number, a negative one, a role that there is not, or one named twice.
  """
  factors: dict[str, float] = {}
  for text in texts:
    role, _, number = text.partition("=")
    if role not in roles:
      close = difflib.get_close_matches(role, roles, n=1)
      raise UserError(f"config.optim.lr_multipliers={text}: {role} is not a parameter role; "
                      + (f"did you mean {close[0]}?" if close
                         else f"they are {', '.join(roles)}"))
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
  """What the fields of a resolved optimiser must satisfy; `check` raises what fails."""
  optim = config.optim
  for field in ("decay_roles", "train_roles", "projection_roles"):
    unknown = [r for r in getattr(optim, field) if r not in roles]
    check(not unknown, f"optim.{field}",
          f"{', '.join(unknown)} is not a parameter role; they are {', '.join(roles)}")
  check(bool(optim.train_roles), "optim.train_roles",
        f"nothing would be trained; give some of {', '.join(roles)}")
  parse_multipliers(optim.lr_multipliers, roles)

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

  check(optim.momentum != 0 or optim.moment_dtype == "float32", "optim.moment_dtype",
        f"optim.name={optim.name} keeps no moments without optim.momentum")
  check(optim.precondition_power is None or optim.precondition_power < 0,
        "optim.precondition_power", "must be negative")
  check(optim.shampoo_beta is None or optim.name == "shampoo" or optim.shampoo_beta < 1,
        "optim.shampoo_beta", f"must be below 1 in {optim.name}, whose factors are averages")

  if optim.scaling == "none":
    check(optim.base_width is None, "optim.base_width", "does nothing without optim.scaling=mup")
  else:
    check(optim.base_width is not None, "optim.base_width",
          f"optim.scaling={optim.scaling} needs the width at which the rates were found")
    check(optim.name in _ADAMS, "optim.scaling",
          f"is a rule for Adam, not for optim.name={optim.name}; {_listed(_ADAMS)} are Adam")
    check(not config.model.tied_embeddings, "optim.scaling",
          "scales the unembedding and not the embedding; set model.tied_embeddings=false")

  if optim.projection_every is None:
    for field, default in (("projection_roles", ("hidden",)), ("projection_writers", "own"),
                           ("projection_gains", "keep"), ("projection_decay", 0.99)):
      check(getattr(optim, field) == default, f"optim.{field}",
            "does nothing without projections; set optim.projection_every=1")
  check(optim.projection_gains == "decay" or optim.projection_decay == 0.99,
        "optim.projection_decay", "is part of optim.projection_gains=decay")

  assert optim.warmup_steps is not None
  check(optim.schedule == "wsd" or optim.decay_steps is None, "optim.decay_steps",
        f"is part of optim.schedule=wsd and does nothing in {optim.schedule}")
  check(optim.schedule == "wsd" or optim.decay_shape == "linear", "optim.decay_shape",
        f"is part of optim.schedule=wsd and does nothing in {optim.schedule}")
  check(optim.schedule == "wsd" or optim.decay_fraction == 0.2, "optim.decay_fraction",
        f"is part of optim.schedule=wsd and does nothing in {optim.schedule}")
  check(optim.schedule in ("linear", "cosine", "wsd") or optim.final_fraction == 0,
        "optim.final_fraction", f"does nothing in optim.schedule={optim.schedule}")
  check(optim.decay_steps is None or optim.decay_steps <= config.train.steps, "optim.decay_steps",
        f"is longer than the training, train.steps={config.train.steps}")


def _listed(names: Sequence[str]) -> str:
  return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
