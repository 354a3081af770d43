"""Typed, frozen, validated configs. Enters: a config file's object and command-line overrides.
Leaves: one `Config` in which every field has its final value.

Nothing here imports jax, so a mistake is reported in well under a second. A field whose default
is None or "auto" is computed from the others by `resolve`, and config.json records the result.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from of_jax import config_optim
from of_jax import config_values as values
from of_jax.config_images import image_shape
from of_jax.config_rules import validate
from of_jax.config_sections import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TelemetryConfig,
    TrainConfig,
)
from of_jax.errors import UserError

__all__ = [
    "Config", "DataConfig", "MeshConfig", "ModelConfig", "OptimConfig", "TelemetryConfig",
    "TrainConfig", "apply_overrides", "differences", "field_help", "fields", "from_dict", "resolve",
    "to_dict"]

# Of config.json alone: the table of leaves that follows from the config. No section of it.
PARAMETERS = "parameters"


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
  """Plain dictionaries and lists, for JSON."""
  sections = dataclasses.asdict(config)
  return {s: {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
          for s, fields in sections.items()}


def from_dict(sections: Mapping[str, Mapping[str, Any]]) -> Config:
  """The inverse of `to_dict`, of config.json too. Raises UserError on an unknown field or type."""
  config = Config()
  for section, fields in sections.items():
    if section == PARAMETERS:
      continue
    for name, value in fields.items():
      config = _set(config, f"{section}.{name}", value)
  return config


def apply_overrides(config: Config, overrides: Iterable[tuple[str, str]]) -> Config:
  """`config` with each (dotted path, text) set, in order, then resolved and validated.

  Raises:
    UserError: a path that names no field (the nearest one is given), a text that is not of the
      field's type, or a combination that cannot be trained.
  """
  for path, text in overrides:
    config = _set(config, path, text, parse=True)
  return resolve(config)


def resolve(config: Config) -> Config:
  """Fills the fields that are computed from others, then validates. Idempotent."""
  _check_fields(config)
  model, optim, train = config.model, config.optim, config.train
  if model.kind == "residual_mlp":
    config = _resolve_images(config)
    model = config.model
  beta = model.beta
  if beta is None and model.block == "op":
    beta = 1 / math.sqrt(2 * model.depth)
  if beta is None and model.block == "residual_scaled":
    beta = {"inverse_depth": 1 / model.depth, "inverse_sqrt_depth": 1 / math.sqrt(model.depth),
            "zero": 0.0}[model.residual_scale]
  alpha = model.mlp_input_scale
  if alpha is None:
    alpha = 1 / (model.init_std * math.sqrt(model.width))
  hidden = model.mlp_width
  if hidden is None:
    # Gated forms have three matrices: 8/3 of the width keeps the parameter count.
    hidden = 4 * model.width
    if model.mlp.endswith("glu"):
      hidden = 8 * math.ceil(model.width / 3)
  gamma = model.softmax_gamma
  if gamma is None and model.attention_softmax == "clipped":
    gamma = -12 / train.sequence_length
  qk_norm, mlp_norm = model.qk_norm, model.mlp_norm
  if qk_norm == "auto":
    qk_norm = "rms" if model.block in ("op", "nap") else "none"
  if mlp_norm == "auto":
    mlp_norm = "rms" if model.block == "nap" else "none"
  model = dataclasses.replace(
      model, beta=beta, beta_mlp=beta if model.beta_mlp is None else model.beta_mlp,
      mlp_input_scale=alpha, mlp_width=hidden, mlp_norm=mlp_norm,
      embedding_dropout=model.dropout if model.embedding_dropout is None
      else model.embedding_dropout)
  if model.kind == "transformer":
    head_dim = model.head_dim
    if head_dim is None and model.heads > 0 and model.width % model.heads == 0:
      head_dim = model.width // model.heads
    model = dataclasses.replace(
        model,
        head_dim=head_dim,
        kv_heads=model.heads if model.kv_heads is None else model.kv_heads,
        dyt_alpha_attention=(model.dyt_alpha if model.dyt_alpha_attention is None
                             else model.dyt_alpha_attention),
        final_norm_kind=model.final_norm_kind or model.norm,
        softmax_gamma=gamma,
        qk_norm=qk_norm,
        beta_attention=beta if model.beta_attention is None else model.beta_attention,
        position_init_std=(model.init_std / 2 if model.position_init_std is None
                           else model.position_init_std))
  if optim.warmup_steps is None:
    optim = dataclasses.replace(
        optim, warmup_steps=round(optim.warmup_fraction * train.steps))
  if optim.decay_steps is None and optim.schedule == "wsd":
    optim = dataclasses.replace(
        optim, decay_steps=max(1, round(optim.decay_fraction * train.steps)))
  optim = dataclasses.replace(optim, **{
      name: default for name, default in config_optim.own_fields(optim.name).items()
      if getattr(optim, name) is None})
  config = dataclasses.replace(config, model=model, optim=optim)
  validate(config)
  return config


def _resolve_images(config: Config) -> Config:
  """The sizes of a residual MLP, and of the images that it reads."""
  model, data = config.model, config.data
  if model.mlp_width is None:
    # Two square matrices a layer; three of two thirds that size if gated.
    hidden = 2 * math.ceil(model.width / 3) if model.mlp.endswith("glu") else model.width
    model = dataclasses.replace(model, mlp_width=hidden)
  known = image_shape(data.corpus)
  if known is not None:
    pixels, classes = known
    data = dataclasses.replace(
        data, input_size=pixels if data.input_size is None else data.input_size,
        classes=classes if data.classes is None else data.classes)
  return dataclasses.replace(config, model=model, data=data)


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
  """The dotted paths whose values differ, each with both values."""
  left, right = to_dict(a), to_dict(b)
  return {f"{s}.{k}": (v, right[s][k])
          for s, fields in left.items() for k, v in fields.items() if v != right[s][k]}


def fields() -> dict[str, dataclasses.Field[Any]]:
  """Every field by its dotted path."""
  return {f"{section.name}.{field.name}": field
          for section in dataclasses.fields(Config)
          for field in dataclasses.fields(section.default)}  # type: ignore[arg-type]


def field_help() -> str:
  """One line a field: path, default, meaning, choices."""
  lines = []
  for path, field in fields().items():
    choices = values.choices(field, _hints(path)[field.name])
    text = field.metadata["doc"] + (f" ({', '.join(choices)})" if choices else "")
    lines.append(f"  --config.{path}={values.show(field.default)}\n      {text}")
  return "\n".join(lines)


def _hints(path: str) -> dict[str, Any]:
  section = path.partition(".")[0]
  return typing.get_type_hints(typing.get_type_hints(Config)[section])


def _set(config: Config, path: str, value: Any, parse: bool = False) -> Config:
  if path not in fields():
    raise UserError(f"config.{path}: no such field{_nearest(path)}")
  section, name = path.split(".")
  hint = _hints(path)[name]
  try:
    value = values.parse(value, hint) if parse else values.coerce(value, hint)
  except (ValueError, TypeError):
    raise UserError(f"config.{path}={value}: not {values.describe(hint)}") from None
  part = dataclasses.replace(getattr(config, section), **{name: value})
  return dataclasses.replace(config, **{section: part})


# What other libraries call a field.
_SYNONYMS = {
    "model.depth": ("layers", "n_layer", "n_layers", "num_layers", "num_hidden_layers"),
    "model.width": ("d_model", "dim", "embed_dim", "emb_dim", "hidden_size", "n_embd"),
    "model.heads": ("n_head", "n_heads", "num_heads", "num_attention_heads"),
    "model.kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "model.mlp_width": ("d_ff", "ffn_dim", "intermediate_size", "mlp_dim", "n_inner"),
    "train.sequence_length": ("block_size", "context_length", "max_length", "n_ctx", "seq_len"),
    "optim.learning_rate": ("lr",), "optim.weight_decay": ("wd",), "optim.name": ("optimizer",),
    "optim.warmup_steps": ("warmup",), "optim.clip_norm": ("grad_clip", "max_grad_norm"),
    "train.steps": ("max_steps", "num_steps", "total_steps")}


def _nearest(path: str) -> str:
  known = list(fields())
  name = path.rpartition(".")[2]
  for field, synonyms in _SYNONYMS.items():
    if name in synonyms:
      return f"; did you mean config.{field}?"
  same_name = [k for k in known if k.rpartition(".")[2] == name]
  # A field's own name says more than its section, so `train.learning_rate` finds `optim.`.
  close = same_name or difflib.get_close_matches(path, known, n=1, cutoff=0.6)
  if not close:
    by_name = {k.rpartition(".")[2]: k for k in known}
    close = [by_name[n] for n in difflib.get_close_matches(name, by_name, n=1, cutoff=0.6)]
  return f"; did you mean config.{close[0]}?" if close else "; --help lists all fields"


def _check_fields(config: Config) -> None:
  """Types, choices and finiteness of every single field."""
  for path, field in fields().items():
    section, name = path.split(".")
    value, hint = getattr(getattr(config, section), name), _hints(path)[name]
    try:
      values.coerce(value, hint)
    except TypeError:
      raise UserError(f"config.{path}={value!r}: not {values.describe(hint)}") from None
    choices = values.choices(field, hint)
    if choices and value is not None and value not in choices:
      close = difflib.get_close_matches(str(value), choices, n=1)
      raise UserError(f"config.{path}={value}: not one of {', '.join(choices)}"
                      + (f"; did you mean {close[0]}?" if close else ""))
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"config.{path}={value}: not a finite number")
