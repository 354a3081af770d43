"""Rules that a resolved config must satisfy: ranges of single fields, and combinations."""

import math

from of_jax.config import own_code, values
from of_jax.config.kinds import kind_of
from of_jax.config.roles import TRAINED_ROLES
from of_jax.config.rules import kinds as kinds_rules
from of_jax.config.rules import model as model_rules
from of_jax.config.rules import optim as optim_rules
from of_jax.config.rules import telemetry as telemetry_rules
from of_jax.config.rules.check import Check
from of_jax.config.rules.fields import check_ranges, check_types, default
from of_jax.config.sections import Config, TrainConfig
from of_jax.errors import UserError

_MOST_CHECKPOINTS = 1_000_000


def _require(condition: bool, path: str, config: Config, what: str) -> None:
  if not condition:
    section, name = path.split(".")
    raise UserError(
        f"config.{path}={values.show(getattr(getattr(config, section), name))}: {what}")


def validate(config: Config) -> None:
  """Checks ranges, then combinations. The first that fails is raised.

  Raises:
    UserError: naming the field at fault.
  """
  def check(condition: bool, path: str, what: str) -> None:
    _require(condition, path, config, what)

  check_types(config)
  check_ranges(config)
  model_rules.validate(config, check)
  _check_train(config.train, check)
  optim_rules.validate(config, check, TRAINED_ROLES)
  kinds_rules.validate(config, check)
  telemetry_rules.validate(config, check)
  _check_mesh(config, check)


def _check_train(train: TrainConfig, check: Check) -> None:
  """Checks the term against outliers, that micro-batches add up, and how much is kept."""
  for field in ("tweo_threshold", "tweo_power"):
    path = f"train.{field}"
    check(train.tweo_weight > 0 or getattr(train, field) == default(path), path,
          "does nothing without the term; set train.tweo_weight=0.01")
  check(not train.loss_term or own_code.is_own("train.loss_term", train.loss_term),
        "train.loss_term", "not of the form FILE.py:NAME")
  check(bool(train.loss_term) or train.loss_term_weight == default("train.loss_term_weight"),
        "train.loss_term_weight", "does nothing without a term; set train.loss_term=FILE.py:NAME")
  check(not (train.loss_term and train.tweo_weight), "train.loss_term",
        "is the one term that a block's output may have, as TWEO's is: leave train.tweo_weight 0")
  check(train.batch_size % train.grad_accumulation == 0, "train.grad_accumulation",
        f"does not divide train.batch_size={train.batch_size}")
  kept = train.steps // train.checkpoint_every
  check(kept <= _MOST_CHECKPOINTS, "train.checkpoint_every",
        f"would keep {kept:,} checkpoints of train.steps={train.steps}; at most "
        f"{_MOST_CHECKPOINTS:,}")


def _check_mesh(config: Config, check: Check) -> None:
  """Checks that the mesh divides what it splits."""
  model, mesh = config.model, config.mesh
  check((mesh.data, mesh.fsdp, mesh.tensor).count(-1) <= 1, "mesh.data",
        "only one mesh axis can be -1")
  check_batch_splits(config, math.prod(n for n in (mesh.data, mesh.fsdp) if n != -1))
  split = {"model.mlp_width": model.mlp_width}
  kind = kind_of(model.kind)
  if kind.has_attention:
    split |= {"model.heads": model.heads, "model.kv_heads": model.kv_heads}
  if kind.inputs == "tokens":
    split["data.vocab_size"] = config.data.vocab_size
  for path, size in split.items():
    assert size is not None
    check(mesh.tensor < 2 or size % mesh.tensor == 0, "mesh.tensor",
          f"does not divide {path}={size}")
  check(mesh.fsdp < 2 or model.width % mesh.fsdp == 0, "mesh.fsdp",
        f"does not divide model.width={model.width}")


def check_batch_splits(config: Config, ways: int) -> None:
  """Raises UserError unless `ways` devices can share a micro-batch and the evaluation set."""
  micro = config.train.batch_size // config.train.grad_accumulation
  if micro % ways:
    what = "train.batch_size" if config.train.grad_accumulation == 1 else \
        "train.batch_size / train.grad_accumulation"
    raise UserError(
        f"config.{what}={micro}: cannot be split over the mesh's data x fsdp = {ways} devices; "
        f"nearest that can: {max(1, round(micro / ways)) * ways * config.train.grad_accumulation}")
