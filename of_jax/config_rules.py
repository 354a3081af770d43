"""What a resolved config must satisfy: ranges of single fields, and combinations."""

import math
from typing import TYPE_CHECKING

from of_jax.errors import UserError

if TYPE_CHECKING:
  from of_jax.config import Config

# `running` is for statistics that the forward pass keeps: no optimiser sees them.
ROLES = ("embedding", "hidden", "unembedding", "gain", "norm", "bias", "running")


def _require(condition: bool, path: str, config: "Config", what: str) -> None:
  if not condition:
    section, name = path.split(".")
    raise UserError(f"config.{path}={getattr(getattr(config, section), name)}: {what}")


_AT_LEAST_ONE = (
    "model.width", "model.depth", "model.heads", "model.head_dim", "model.kv_heads",
    "model.mlp_width", "model.norm_gate_rank", "train.steps", "train.batch_size",
    "train.sequence_length", "train.grad_accumulation", "train.log_every", "train.eval_every",
    "train.checkpoint_every", "data.eval_sequences", "telemetry.every")
_AT_LEAST_TWO = ("train.checkpoint_log_base",)
_POSITIVE = ("model.rope_theta", "model.embedding_scale", "model.attention_cap",
             "model.mlp_input_scale", "model.dyt_alpha", "model.dyt_alpha_attention",
             "optim.clip_norm")
_NOT_NEGATIVE = ("model.norm_eps", "model.init_std", "model.position_init_std", "optim.eps",
                 "optim.learning_rate", "optim.weight_decay", "optim.warmup_steps",
                 "model.power_warmup_steps", "train.z_loss", "train.seed",
                 "data.begin_token_id", "data.end_token_id")
_FRACTIONS = ("optim.warmup_fraction", "optim.decay_fraction", "optim.final_fraction",
              "model.mix_alpha")
_BELOW_ONE = ("model.dropout", "model.power_decay", "optim.b1", "optim.b2")
# Field, the value that asks for nothing, and the choice that it belongs to.
_PART_OF = (
    ("model.mlp_input_scale", 1.0, "model.block", "op"),
    ("model.first_attention_norm", False, "model.block", "op"),
    ("model.mix_alpha", 0.25, "model.block", "mix"),
    ("model.residual_scale", "inverse_sqrt_depth", "model.block", "residual_scaled"),
    ("model.norm_gate_rank", 16, "model.block", "gated_norm"),
    ("model.dyt_alpha", 0.5, "model.norm", "dyt"),
    ("model.dyt_alpha_attention", 0.5, "model.norm", "dyt"),
    ("model.power_decay", 0.9, "model.norm", "power"),
    ("model.power_warmup_steps", 10_000, "model.norm", "power"),
    ("model.leaky_relu_slope", 0.01, "model.mlp", "leaky_relu"),
    ("model.softmax_zeta", 1.0, "model.attention_softmax", "clipped"),
    ("model.softmax_gamma", None, "model.attention_softmax", "clipped"),
    ("model.attention_gate_init", 0.25, "model.attention_gate", "head"),
)
# Blocks that have no norm to leave out, or are a model of their own without.
_WITHOUT_NORM = ("pre", "parallel", "op", "residual_scaled")
# Blocks in which no norm's output goes to attention alone.
_NO_ATTENTION_NORM = ("post", "mix", "deepnorm", "output", "parallel")


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

  if model.head_dim is None:
    raise UserError(f"config.model.heads={model.heads}: does not divide model.width={model.width};"
                    f" nearest that does: {_nearest_divisor(model.width, model.heads)}, or give "
                    "model.head_dim")
  check(model.positions != "rotary" or model.head_dim % 2 == 0, "model.heads",
        "rotary positions need an even head dimension (width / heads)")
  assert model.kv_heads is not None
  check(model.heads % model.kv_heads == 0, "model.kv_heads",
        f"does not divide model.heads={model.heads}; "
        f"nearest that does: {_nearest_divisor(model.heads, model.kv_heads)}")
  for path, nothing, owner, choice in _PART_OF:
    value, chosen = (getattr(model, p.removeprefix("model.")) for p in (path, owner))
    check(chosen == choice or value == nothing, path,
          f"is part of {owner}={choice} and does nothing in {chosen}")
  check(model.norm != "none" or model.block in _WITHOUT_NORM, "model.norm",
        f"model.block={model.block} is the place of its norms; without any, take "
        f"{', '.join(_WITHOUT_NORM)}")
  check(model.attention_gate != "head" or model.heads * model.head_dim == model.width,
        "model.attention_gate", "reads a slice of the stream a head, so heads x head_dim must be "
        f"model.width={model.width}")
  check(model.norm != "none" or not model.final_norm, "model.final_norm",
        "does nothing with model.norm=none")
  check(model.dyt_alpha_attention == model.dyt_alpha or model.block not in _NO_ATTENTION_NORM,
        "model.dyt_alpha_attention", f"no norm of model.block={model.block} is attention's alone; "
        "leave it equal to model.dyt_alpha")
  check(0 < model.attention_gate_init < 1, "model.attention_gate_init",
        "a sigmoid reaches what lies above 0 and below 1")
  check(model.softmax_zeta >= 1, "model.softmax_zeta", "must be at least 1")
  check(model.softmax_gamma is None or model.softmax_gamma <= 0, "model.softmax_gamma",
        "must not be above 0: masked keys would get a weight")
  check(model.block != "residual_scaled" or model.beta != 0 or model.beta_trainable,
        "model.residual_scale", "a fixed gain of 0 leaves the model without branches; "
        "set model.beta_trainable=true")
  check(model.mlp != "sglu" or model.mlp_norm == "none", "model.mlp_norm",
        "sglu has no nonlinearity to stand before")
  for path in ("model.qk_norm", "model.mlp_norm"):
    check(model.block != "nap" or getattr(model, path.removeprefix("model.")) != "none", path,
          "model.block=nap has a norm before every nonlinearity")
  check(model.block != "nap" or model.attention_gate == "none", "model.attention_gate",
        "no norm stands before the gate's sigmoid, and model.block=nap has one before every "
        "nonlinearity")
  check(not model.beta_trainable or model.beta_attention is not None
        or model.beta_mlp is not None, "model.beta_trainable",
        "there is no gain to train; set model.beta")
  check(not model.beta_per_channel or model.beta_trainable, "model.beta_per_channel",
        "does nothing to fixed gains; set model.beta_trainable=true")
  check(train.seed < 2 ** 31, "train.seed", "must be below 2147483648")

  unknown = [r for r in optim.decay_roles if r not in ROLES]
  check(not unknown, "optim.decay_roles",
        f"{', '.join(unknown)} is not a parameter role; they are {', '.join(ROLES)}")
  check("running" not in optim.decay_roles, "optim.decay_roles",
        "running statistics are not trained, so nothing decays them")
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
    for name, heads in (("heads", model.heads), ("kv_heads", model.kv_heads)):
      check(heads % mesh.tensor == 0, "mesh.tensor", f"does not divide model.{name}={heads}")
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
