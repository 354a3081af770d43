"""From what a user set to a config in which every field has its final value, checked."""

import dataclasses
import difflib
import math
from collections.abc import Iterable

from of_jax.config import values
from of_jax.config.fields import fields, hints, set_field
from of_jax.config.images import image_shape
from of_jax.config.kinds import kind_of
from of_jax.config.rules import optim as optim_rules
from of_jax.config.rules.common import validate
from of_jax.config.sections import Config
from of_jax.errors import UserError


def apply_overrides(config: Config, overrides: Iterable[tuple[str, str]]) -> Config:
  """`config` with each (dotted path, text) set, in order, then resolved and validated.

  Raises:
    UserError: a path that names no field (the nearest one is given), a text that is not of the
      field's type, or a combination that cannot be trained.
  """
  for path, text in overrides:
    config = set_field(config, path, text, parse=True)
  return resolve(config)


def resolve(config: Config) -> Config:
  """Fills the fields that are computed from others, then validates. Idempotent."""
  _check_fields(config)
  model, optim, train = config.model, config.optim, config.train
  kind = kind_of(model.kind)
  if kind.inputs == "images":
    config = _resolve_images(config)
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
    # Gated forms have three matrices: two thirds of the width keeps the parameter count.
    hidden = kind.hidden_ratio * model.width
    if model.mlp.endswith("glu"):
      hidden = 2 * kind.hidden_ratio * math.ceil(model.width / 3)
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
  if kind.has_attention:
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
      name: default for name, default in optim_rules.own_fields(optim.name).items()
      if getattr(optim, name) is None})
  config = dataclasses.replace(config, model=model, optim=optim)
  validate(config)
  return config


def _resolve_images(config: Config) -> Config:
  """Fills the sizes of the images that a model reads, where the corpus's name tells them."""
  data = config.data
  known = image_shape(data.corpus)
  if known is not None:
    pixels, classes = known
    data = dataclasses.replace(
        data, input_size=pixels if data.input_size is None else data.input_size,
        classes=classes if data.classes is None else data.classes)
  return dataclasses.replace(config, data=data)


def _check_fields(config: Config) -> None:
  """Types, choices and finiteness of every single field."""
  for path, field in fields().items():
    section, name = path.split(".")
    value, hint = getattr(getattr(config, section), name), hints(path)[name]
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
