"""Fills the fields that a user did not set, and checks the whole config."""

import dataclasses
import math
from collections.abc import Iterable

from of_jax.config import traits
from of_jax.config.fields import set_field
from of_jax.config.images import image_shape
from of_jax.config.kinds import Kind, kind_of
from of_jax.config.rules.common import validate
from of_jax.config.rules.fields import check_ranges, check_types, owner
from of_jax.config.rules.optim import own_fields
from of_jax.config.sections import Config, ModelConfig, OptimConfig
from of_jax.errors import UserError


def apply_overrides(config: Config, overrides: Iterable[tuple[str, str]]) -> Config:
  """Sets each (dotted path, text) of `config`, in order, then resolves and validates it.

  Raises:
    UserError: a path that names no field (the nearest one is given), a text that is not of the
      field's type, or a combination that cannot be trained.
  """
  for path, text in overrides:
    config = set_field(config, path, text, parse=True)
  return resolve(config)


def resolve(config: Config) -> Config:
  """Fills the fields that are computed from others, then validates. Idempotent.

  Raises:
    UserError: a field of a wrong type or value, or a combination that cannot be trained.
  """
  # Before anything is computed with a number.
  check_types(config)
  check_ranges(config)
  kind = kind_of(config.model.kind)
  if kind.inputs == "images":
    config = _resolve_images(config)
  model = _resolve_model(config.model, kind)
  if kind.has_attention:
    model = _resolve_attention(model, config.train.sequence_length)
  config = dataclasses.replace(
      config, model=model, optim=_resolve_optim(config.optim, config.train.steps))
  validate(config)
  return config


def _beta(model: ModelConfig) -> float | None:
  """Gain of the branches: what is set, else what the block's trait says."""
  rule: str = traits.block(model.block).beta
  if model.beta is not None or rule == "none":
    return model.beta
  if rule == "residual_scale":
    rule = model.residual_scale
  return {"inverse_depth": 1 / model.depth, "inverse_sqrt_depth": 1 / math.sqrt(model.depth),
          "inverse_sqrt_2_depth": 1 / math.sqrt(2 * model.depth), "zero": 0.0}[rule]


def _mlp_input_scale(model: ModelConfig) -> float:
  """Scale of the MLP's input: what is set, or what brings matrices as drawn to a variance of 1."""
  if model.mlp_input_scale is not None:
    return model.mlp_input_scale
  if not model.init_std:
    raise UserError("config.model.mlp_input_scale=none: is 1 / (init_std sqrt(width)), and "
                    "config.model.init_std=0; set one of them")
  return 1 / (model.init_std * math.sqrt(model.width))


def _resolve_model(model: ModelConfig, kind: Kind) -> ModelConfig:
  """Fills the gains and the MLP's fields."""
  beta, hidden = _beta(model), model.mlp_width
  if hidden is None:
    # Gated forms have three matrices: two thirds of the width keeps the parameter count.
    hidden = kind.hidden_ratio * model.width
    if traits.mlp(model.mlp).gated:
      hidden = 2 * kind.hidden_ratio * math.ceil(model.width / 3)
  return dataclasses.replace(
      model, beta=beta, mlp_width=hidden,
      beta_mlp=beta if model.beta_mlp is None else model.beta_mlp,
      mlp_input_scale=_mlp_input_scale(model),
      mlp_norm=(traits.block(model.block).mlp_norm if model.mlp_norm == "auto"
                else model.mlp_norm),
      embedding_dropout=(model.dropout if model.embedding_dropout is None
                         else model.embedding_dropout))


def _resolve_attention(model: ModelConfig, sequence_length: int) -> ModelConfig:
  """Fills what attention and its neighbours read; `beta` is final."""
  head_dim, gamma = model.head_dim, model.softmax_gamma
  if head_dim is None and model.heads > 0 and model.width % model.heads == 0:
    head_dim = model.width // model.heads
  if gamma is None and model.attention_softmax in owner("model.softmax_gamma").choices:
    gamma = -12 / sequence_length
  return dataclasses.replace(
      model, head_dim=head_dim, softmax_gamma=gamma,
      kv_heads=model.heads if model.kv_heads is None else model.kv_heads,
      dyt_alpha_attention=(model.dyt_alpha if model.dyt_alpha_attention is None
                           else model.dyt_alpha_attention),
      final_norm_kind=model.final_norm_kind or model.norm,
      qk_norm=traits.block(model.block).qk_norm if model.qk_norm == "auto" else model.qk_norm,
      beta_attention=model.beta if model.beta_attention is None else model.beta_attention,
      position_init_std=(model.init_std / 2 if model.position_init_std is None
                         else model.position_init_std))


def _resolve_optim(optim: OptimConfig, steps: int) -> OptimConfig:
  """Fills the schedule's steps, and what the optimiser's file has defaults for."""
  if optim.warmup_steps is None:
    optim = dataclasses.replace(optim, warmup_steps=round(optim.warmup_fraction * steps))
  if optim.decay_steps is None and optim.schedule == "wsd":
    optim = dataclasses.replace(optim, decay_steps=max(1, round(optim.decay_fraction * steps)))
  return dataclasses.replace(optim, **{
      name: default for name, default in own_fields(optim.name).items()
      if getattr(optim, name) is None})


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
