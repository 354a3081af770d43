"""What a resolved config must satisfy: ranges of single fields, and combinations."""

import math

from of_jax.config import values
from of_jax.config.kinds import kind_of
from of_jax.config.roles import TRAINED_ROLES
from of_jax.config.rules import kinds as kinds_rules
from of_jax.config.rules import model as model_rules
from of_jax.config.rules import optim as optim_rules
from of_jax.config.rules import telemetry as telemetry_rules
from of_jax.config.sections import Config
from of_jax.errors import UserError


def _require(condition: bool, path: str, config: Config, what: str) -> None:
  if not condition:
    section, name = path.split(".")
    raise UserError(
        f"config.{path}={values.show(getattr(getattr(config, section), name))}: {what}")


_AT_LEAST_ONE = (
    "model.width", "model.depth", "model.heads", "model.head_dim", "model.kv_heads",
    "model.mlp_width", "model.norm_gate_rank", "train.steps", "train.batch_size",
    "train.sequence_length", "train.grad_accumulation", "train.log_every", "train.eval_every",
    "train.checkpoint_every", "data.eval_sequences", "data.input_size", "telemetry.every",
    "optim.newton_schulz_steps", "optim.norm_iterations", "optim.projection_every",
    "optim.decay_steps", "optim.base_width", "optim.precondition_frequency",
    "optim.max_precond_dim", "model.attention_window", "model.full_attention_every",
    "model.rope_original_length")
_AT_LEAST_TWO = ("train.checkpoint_log_base", "data.classes")
_POSITIVE = ("model.rope_theta", "model.embedding_scale", "model.attention_cap",
             "model.mlp_input_scale", "model.dyt_alpha", "model.dyt_alpha_attention",
             "model.attention_scale", "model.logit_cap", "model.skip_gain", "model.rope_fraction",
             "optim.clip_norm", "optim.update_clip", "optim.decay_exponent",
             "train.tweo_threshold", "model.rope_low_frequency")
_NOT_NEGATIVE = ("model.norm_eps", "model.init_std", "model.position_init_std", "optim.eps",
                 "optim.learning_rate", "optim.weight_decay", "optim.warmup_steps", "optim.delta",
                 "model.power_warmup_steps", "train.z_loss", "train.tweo_weight", "train.seed",
                 "data.begin_token_id", "data.end_token_id",
                 "telemetry.quantised_perplexity_every")
_FRACTIONS = ("optim.warmup_fraction", "optim.decay_fraction", "optim.final_fraction",
              "optim.dampening", "optim.shampoo_beta", "optim.wd_ratio", "optim.projection_decay",
              "model.mix_alpha", "model.rope_fraction")
_BELOW_ONE = ("model.dropout", "model.embedding_dropout", "model.attention_dropout",
              "model.power_decay", "optim.momentum", "optim.b1", "optim.b2")


def validate(config: Config) -> None:
  """Ranges, then combinations. The first that fails is raised."""
  model, optim, train, data, mesh = (
      config.model, config.optim, config.train, config.data, config.mesh)

  def check(condition: bool, path: str, what: str) -> None:
    _require(condition, path, config, what)

  for path in _AT_LEAST_ONE + _AT_LEAST_TWO + _POSITIVE + _NOT_NEGATIVE + _FRACTIONS + _BELOW_ONE:
    section, name = path.split(".")
    value = getattr(getattr(config, section), name)
    if value is None:
      continue
    check(path not in _AT_LEAST_ONE or value >= 1, path, "must be at least 1")
    check(path not in _AT_LEAST_TWO or value >= 2, path, "must be at least 2")
    check(path not in _POSITIVE or value > 0, path, "must be above 0")
    check(path not in _NOT_NEGATIVE or value >= 0, path, "must not be negative")
    check(path not in _FRACTIONS or 0 <= value <= 1, path, "must lie between 0 and 1")
    check(path not in _BELOW_ONE or 0 <= value < 1, path, "must be at least 0 and below 1")

  model_rules.validate(model, check)
  check(train.seed < 2 ** 31, "train.seed", "must be below 2147483648")
  check(train.tweo_power >= 1, "train.tweo_power",
        "must be at least 1: below, its gradient has no bound near 0")
  for field, default in (("tweo_threshold", 3.0), ("tweo_power", 4.0)):
    check(train.tweo_weight > 0 or getattr(train, field) == default, f"train.{field}",
          "does nothing without the term; set train.tweo_weight=0.01")

  optim_rules.validate(config, check, TRAINED_ROLES)
  assert optim.warmup_steps is not None
  check(optim.warmup_steps <= train.steps, "optim.warmup_steps",
        f"the warmup is longer than the training, train.steps={train.steps}")
  check(train.batch_size % train.grad_accumulation == 0, "train.grad_accumulation",
        f"does not divide train.batch_size={train.batch_size}")

  check(0 < data.validation_fraction < 1, "data.validation_fraction",
        "must lie above 0 and below 1")
  kinds_rules.validate(config, check)

  for axis in ("data", "fsdp", "tensor"):
    check(getattr(mesh, axis) == -1 or getattr(mesh, axis) >= 1, f"mesh.{axis}",
          "must be at least 1, or -1 for the devices that are left")
  check((mesh.data, mesh.fsdp, mesh.tensor).count(-1) <= 1, "mesh.data",
        "only one mesh axis can be -1")
  ways = math.prod(n for n in (mesh.data, mesh.fsdp) if n != -1)
  check_batch_splits(config, ways)
  telemetry_rules.validate(config, check)
  split = {"model.mlp_width": model.mlp_width}
  kind = kind_of(model.kind)
  if kind.has_attention:
    split |= {"model.heads": model.heads, "model.kv_heads": model.kv_heads}
  if kind.inputs == "tokens":
    split["data.vocab_size"] = data.vocab_size
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
