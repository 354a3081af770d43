"""Fields of a config by their dotted paths: read, set, compared, written to JSON and described."""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.config import values
from of_jax.config.sections import Config
from of_jax.errors import UserError, closest

# Of config.json alone: the table of leaves that follows from the config. No section of it.
PARAMETERS = "parameters"
# The version of a run directory, a number, and today's. 1, which has no number, is that of runs
# whose checkpoints have no digest of the optimiser's state, and nothing of metrics.jsonl.
SCHEMA = "schema"
SCHEMA_VERSION = 2


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
  """Converts a config to plain dictionaries and lists, for JSON."""
  sections = dataclasses.asdict(config)
  return {s: {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
          for s, fields in sections.items()}


def from_dict(sections: Mapping[str, Mapping[str, Any]]) -> Config:
  """Inverts `to_dict`, of config.json too.

  Raises:
    UserError: an unknown field or type, or a run of a newer version.
  """
  if not isinstance(sections, Mapping):
    raise UserError("no JSON object of sections")
  version = sections.get(SCHEMA, 1)
  if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
    raise UserError(f"{SCHEMA} {str(version)[:40]}: this version reads run directories of schema 1 "
                    f"to {SCHEMA_VERSION}; use the version of of_jax that wrote it, or a newer one")
  config = Config()
  for section, fields in sections.items():
    if section in (PARAMETERS, SCHEMA):
      continue
    if not isinstance(fields, Mapping):
      raise UserError(f"{section}: no JSON object of fields")
    for name, value in fields.items():
      config = set_field(config, f"{section}.{name}", value)
  return config


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
  """The dotted paths whose values differ, each with both values."""
  left, right = to_dict(a), to_dict(b)
  return {f"{s}.{k}": (v, right[s][k])
          for s, fields in left.items() for k, v in fields.items() if v != right[s][k]}


@functools.cache
def fields() -> Mapping[str, dataclasses.Field[Any]]:
  """Every field by its dotted path."""
  return types.MappingProxyType({
      f"{section.name}.{field.name}": field
      for section in dataclasses.fields(Config)
      for field in dataclasses.fields(section.default)})  # type: ignore[arg-type]


# Those that people set most, which `--help` shows.
USUAL = (
    "model.block", "model.norm", "model.mlp", "model.width", "model.depth", "model.heads",
    "model.qk_norm", "model.embedding_scale", "optim.name", "optim.learning_rate",
    "optim.weight_decay", "train.steps", "train.batch_size", "train.sequence_length", "train.seed",
    "train.eval_every", "train.checkpoint_every", "data.corpus", "telemetry.level", "mesh.data")


def field_help(only: Sequence[str] = ()) -> str:
  """One line a field, by section: path, default, meaning, choices.

  Args:
    only: the fields to describe; default all.
  """
  lines: list[str] = []
  section = ""
  for path, field in fields().items():
    if only and path not in only:
      continue
    if not only and path.partition(".")[0] != section:
      section = path.partition(".")[0]
      lines.append(f"{section}:")
    choices = values.choices(field, hints(path)[field.name])
    text = field.metadata["doc"] + (f" ({', '.join(choices)})" if choices else "")
    lines.append(f"  --config.{path}={values.show(field.default)}\n      {text}")
  return "\n".join(lines)


def hints(path: str) -> dict[str, Any]:
  """Type hints of all fields of the section that a path begins with."""
  section = type(getattr(Config(), path.partition(".")[0]))
  return _hints(section)  # type: ignore[arg-type]


@functools.cache
def _hints(section: type) -> dict[str, Any]:
  return typing.get_type_hints(section)


def set_field(config: Config, path: str, value: Any, parse: bool = False) -> Config:
  """Sets one field by its dotted path, from text with `parse`.

  Raises:
    UserError: no such field, or a value that is not of its type.
  """
  if path not in fields():
    raise UserError(f"config.{path}: no such field{nearest_field(path)}")
  section, name = path.split(".")
  hint = hints(path)[name]
  try:
    value = values.parse(value, hint) if parse else values.coerce(value, hint)
  except (ValueError, TypeError):
    raise UserError(f"config.{path}={value}: not {values.describe(hint)}") from None
  part = dataclasses.replace(getattr(config, section), **{name: value})
  return dataclasses.replace(config, **{section: part})


# Names of fields in other libraries.
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


def nearest_field(path: str) -> str:
  """Ends a message about a field that there is none of with the one that was meant."""
  known = list(fields())
  name = path.rpartition(".")[2]
  for field, synonyms in _SYNONYMS.items():
    if name in synonyms:
      return f"; did you mean config.{field}?"
  same_name = next((k for k in known if k.rpartition(".")[2] == name), None)
  # A field's own name says more than its section, so `train.learning_rate` finds `optim.`.
  close = same_name or closest(path, known)
  if not close:
    by_name = {k.rpartition(".")[2]: k for k in known}
    close = by_name.get(closest(name, by_name) or "")
  return f"; did you mean config.{close}?" if close else "; --helpfull lists all fields"


def get(config: Config, path: str) -> Any:
  """The value of a field by its dotted path."""
  section, name = path.split(".")
  return getattr(getattr(config, section), name)


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
  """Sets fields by their dotted paths, whatever the type; the result is not resolved or checked."""
  for path, value in values.items():
    section, name = path.split(".")
    part = dataclasses.replace(getattr(config, section), **{name: value})
    config = dataclasses.replace(config, **{section: part})
  return config
