"""What a resolved config must satisfy: ranges of single fields, and combinations."""

import math
from typing import TYPE_CHECKING

from of_jax import config_optim
from of_jax.errors import UserError

if TYPE_CHECKING:
  from of_jax.config import Config

ROLES = ("embedding", "hidden", "unembedding", "gain", "norm", "bias")


def _require(condition: bool, path: str, config: "Config", what: str) -> None:
  if not condition:
    section, name = path.split(".")
    raise UserError(f"config.{path}={getattr(getattr(config, section), name)}: {what}")


_AT_LEAST_ONE = (
    "model.width", "model.depth", "model.heads", "model.mlp_width", "train.steps",
    "train.batch_size", "train.sequence_length", "train.grad_accumulation", "train.log_every",
    "train.eval_every", "train.checkpoint_every", "data.eval_sequences", "telemetry.every",
    "optim.newton_schulz_steps", "optim.norm_iterations", "optim.projection_every",
    "optim.decay_steps", "optim.base_width", "optim.precondition_frequency",
    "optim.max_precond_dim")
_AT_LEAST_TWO = ("train.checkpoint_log_base",)
_POSITIVE = ("model.rope_theta", "model.embedding_scale", "model.attention_cap",
             "model.mlp_input_scale", "optim.clip_norm", "optim.update_clip",
             "optim.decay_exponent")
_NOT_NEGATIVE = ("model.norm_eps", "model.init_std", "model.position_init_std", "optim.eps",
                 "optim.learning_rate", "optim.weight_decay", "optim.warmup_steps", "optim.delta",
                 "train.z_loss", "train.seed", "data.begin_token_id", "data.end_token_id")
_FRACTIONS = ("optim.warmup_fraction", "optim.decay_fraction", "optim.final_fraction",
              "optim.dampening", "optim.shampoo_beta", "optim.wd_ratio", "optim.projection_decay")
_BELOW_ONE = ("model.dropout", "optim.b1", "optim.b2", "optim.momentum")


def validate(config: "Config") -> None:
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

  check(model.width % model.heads == 0, "model.heads",
        f"does not divide model.width={model.width}; "
        f"nearest that does: {_nearest_divisor(model.width, model.heads)}")
  check(model.positions != "rotary" or (model.width // model.heads) % 2 == 0, "model.heads",
        "rotary positions need an even head dimension (width / heads)")
  for path, value, default in (("model.mlp_input_scale", model.mlp_input_scale, 1.0),
                               ("model.first_attention_norm", model.first_attention_norm, False)):
    check(model.block == "op" or value == default, path,
          f"is part of model.block=op and does nothing in {model.block}")
  check(not model.beta_trainable or model.beta_attention is not None
        or model.beta_mlp is not None, "model.beta_trainable",
        "there is no gain to train; set model.beta")
  check(not model.beta_per_channel or model.beta_trainable, "model.beta_per_channel",
        "does nothing to fixed gains; set model.beta_trainable=true")
  check(train.seed < 2 ** 31, "train.seed", "must be below 2147483648")

  config_optim.validate(config, check, ROLES)
  assert optim.warmup_steps is not None
  check(optim.warmup_steps <= train.steps, "optim.warmup_steps",
        f"the warmup is longer than the training, train.steps={train.steps}")
  check(train.batch_size % train.grad_accumulation == 0, "train.grad_accumulation",
        f"does not divide train.batch_size={train.batch_size}")

  check(0 < data.validation_fraction < 1, "data.validation_fraction",
        "must lie above 0 and below 1")
  check(data.vocab_size >= 2, "data.vocab_size", "must be at least 2")
  kind, _, rest = data.corpus.partition(":")
  check(data.corpus in ("python_stdlib", "pypi_code")
        or (kind in ("text", "tfds", "tokens") and bool(rest)), "data.corpus",
        "not python_stdlib, pypi_code, text:PATH, tfds:NAME or tokens:PATH")
  if kind == "tokens":
    for path in ("data.begin_token_id", "data.end_token_id"):
      token = getattr(data, path.split(".")[1])
      check(token is None or token < data.vocab_size, path,
            f"is not below data.vocab_size={data.vocab_size}")
  else:
    check(data.vocab_size >= 258 or bool(data.tokenizer), "data.vocab_size",
          "a byte-level BPE needs at least 258: the bytes, end-of-text and begin")
    check(data.begin_token_id is None, "data.begin_token_id", "only for data.corpus=tokens:PATH")
    check(data.end_token_id is None, "data.end_token_id", "only for data.corpus=tokens:PATH")

  for axis in ("data", "fsdp", "tensor"):
    check(getattr(mesh, axis) == -1 or getattr(mesh, axis) >= 1, f"mesh.{axis}",
          "must be at least 1, or -1 for the devices that are left")
  check((mesh.data, mesh.fsdp, mesh.tensor).count(-1) <= 1, "mesh.data",
        "only one mesh axis can be -1")
  ways = math.prod(n for n in (mesh.data, mesh.fsdp) if n != -1)
  check_batch_splits(config, ways)
  if mesh.tensor > 1:
    check(model.heads % mesh.tensor == 0, "mesh.tensor",
          f"does not divide model.heads={model.heads}")
  check(not config.telemetry.optimizer or config.telemetry.level != "off", "telemetry.optimizer",
        "nothing is measured at telemetry.level=off")
  assert model.mlp_width is not None
  for path, size in (("model.mlp_width", model.mlp_width), ("data.vocab_size", data.vocab_size)):
    check(mesh.tensor < 2 or size % mesh.tensor == 0, "mesh.tensor",
          f"does not divide {path}={size}")
  check(mesh.fsdp < 2 or model.width % mesh.fsdp == 0, "mesh.fsdp",
        f"does not divide model.width={model.width}")


def check_batch_splits(config: "Config", ways: int) -> None:
  """Raises UserError unless `ways` devices can share a micro-batch and the evaluation set."""
  micro = config.train.batch_size // config.train.grad_accumulation
  if micro % ways:
    what = "train.batch_size" if config.train.grad_accumulation == 1 else \
        "train.batch_size / train.grad_accumulation"
    raise UserError(
        f"config.{what}={micro}: cannot be split over the mesh's data x fsdp = {ways} devices; "
        f"nearest that can: {max(1, round(micro / ways)) * ways * config.train.grad_accumulation}")


def _nearest_divisor(number: int, near: int) -> int:
  return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - near))
