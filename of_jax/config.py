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
from typing import Any, Literal

from of_jax import config_optim
from of_jax import config_values as values
from of_jax.config_rules import validate
from of_jax.errors import UserError

# Of config.json alone: the table of leaves that follows from the config. No section of it.
PARAMETERS = "parameters"


def _field(default: Any, doc: str, folder: str = "") -> Any:
  """A documented field; `folder` names the folder of files that its value chooses from."""
  return dataclasses.field(default=default, metadata={"doc": doc, "folder": folder})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer."""

  block: str = _field("pre", "residual block", "models/blocks")
  norm: str = _field("rms", "norm of the block and before the unembedding", "models/norms")
  norm_eps: float = _field(1e-6, "added to the norm's mean square, or to its root")
  norm_eps_placement: Literal["inside", "outside"] = _field(
      "inside", "eps inside the root (common), or outside (the released OF code)")
  width: int = _field(128, "d: neurons of the residual stream")
  depth: int = _field(6, "L: blocks")
  heads: int = _field(4, "attention heads; must divide the width")
  mlp: str = _field("relu", "form of the MLP", "models/mlps")
  mlp_width: int | None = _field(None, "hidden units; default 4 x width, or 8/3 x width if gated")
  positions: Literal["learned", "rotary"] = _field("learned", "position information")
  rope_theta: float = _field(10_000.0, "base of the rotary frequencies")
  embedding_scale: float = _field(1.0, "multiplies token plus position embedding")
  tied_embeddings: bool = _field(False, "unembed with the token embedding's transpose")
  final_norm: bool = _field(False, "norm before the unembedding")
  qk_norm: Literal["auto", "none", "layer", "rms"] = _field(
      "auto", "norm of queries and keys over the head dimension; auto: rms for op, else none")
  qk_bias: bool = _field(False, "bias on queries and keys")
  attention_cap: float | None = _field(None, "c: logits become c tanh(logits / c)")
  beta: float | None = _field(
      None, "gain of both branches; default 1 / sqrt(2 depth) for op, else no gain")
  beta_attention: float | None = _field(None, "gain of the attention branch; default beta")
  beta_mlp: float | None = _field(None, "gain of the MLP branch; default beta")
  beta_trainable: bool = _field(False, "train the gains")
  beta_per_channel: bool = _field(False, "a gain a channel (LayerScale), else one a branch")
  mlp_input_scale: float | None = _field(
      1.0, "op: alpha, multiplies the MLP's input; none: 1 / (init_std sqrt(width))")
  first_attention_norm: bool = _field(
      False, "op: LayerNorm on the attention input of block 0 (the released OF code)")
  dropout: float = _field(0.0, "on the embedding and on each branch's output")
  init_std: float = _field(0.02, "standard deviation of every matrix at init")
  position_init_std: float | None = _field(
      None, "of the position table; default init_std / 2, as in the original GPT-2")
  scan_layers: bool = _field(True, "run the blocks as one scan, else unrolled")
  remat: Literal["none", "dots", "full"] = _field(
      "none", "what the backward pass recomputes: nothing, all but matrix products, all")
  compute_dtype: Literal["float32", "bfloat16"] = _field(
      "float32", "type of activations and products; parameters stay float32")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """The optimiser and its learning-rate schedule.

  The fields from `b1` to `grafting` belong to some optimisers and not to others. None means
  the optimiser's own default, which its file states; where it reads no such field, it stays None.
  """

  name: str = _field("adamw", "optimiser", "optim/optimizers")
  learning_rate: float = _field(1e-3, "peak")
  b1: float | None = _field(None, "decay of the first moment")
  b2: float | None = _field(None, "decay of the second moment")
  eps: float | None = _field(None, "added to the root of the second moment")
  momentum: float | None = _field(None, "decay of the sum of gradients")
  dampening: float | None = _field(None, "share of the gradient that the sum leaves out")
  nesterov: bool | None = _field(None, "look ahead along the momentum")
  delta: float | None = _field(
      None, "adamp, sgdp: a weight is scale-invariant below this cosine x sqrt(size)")
  wd_ratio: float | None = _field(
      None, "adamp, sgdp: decay of scale-invariant weights over that of others")
  decay_exponent: float | None = _field(
      None, "adafactor: the second moment's decay is 1 - step^-this")
  update_clip: float | None = _field(None, "adafactor: largest RMS of a matrix's update")
  newton_schulz_steps: int | None = _field(None, "muon: steps of the orthogonalisation")
  muon_scale: Literal["width", "rms"] | None = _field(
      None, "muon: sqrt(max(1, out / in)), or 0.2 sqrt(max(in, out)), about Adam's size")
  norms: tuple[str, ...] | None = _field(
      None, "sinkgd: what is normalised in turn, of rows, columns, matrix and spectrum")
  norm_iterations: int | None = _field(None, "sinkgd: rounds over all norms")
  shampoo_beta: float | None = _field(
      None, "decay of the factors G G^T and G^T G; shampoo: 1 sums them; default b2")
  precondition_frequency: int | None = _field(
      None, "steps between refreshes of the eigenbases or roots")
  max_precond_dim: int | None = _field(
      None, "sides of matrices above this have no factor; the vocabulary never has")
  precondition_power: float | None = _field(
      None, "shampoo: of each factor, -0.5 (He et al. 2024) or -0.25 (Gupta et al. 2018)")
  grafting: Literal["none", "sgd", "adam"] | None = _field(
      None, "shampoo: whose norm the update takes, matrix by matrix")
  weight_decay: float = _field(0.1, "decoupled; each step decays by learning_rate x this")
  decay_roles: tuple[str, ...] = _field(
      ("embedding", "hidden", "unembedding"), "parameter roles that decay")
  lr_multipliers: tuple[str, ...] = _field(
      (), "learning rate by parameter role over learning_rate, as in embedding=0.1,gain=3")
  scaling: Literal["none", "mup", "mup_decay"] = _field(
      "none", "init, learning rate and decay by role and width / base_width: muP for Adam, or with "
      "the decay that keeps the spectrum's size")
  base_width: int | None = _field(None, "scaling: the model.width at which nothing is scaled")
  clip_norm: float | None = _field(1.0, "largest global gradient norm; none: no clipping")
  projection_every: int | None = _field(
      None, "steps between projections to the norm at init (NaP); none: no projection")
  projection_roles: tuple[str, ...] = _field(("hidden",), "parameter roles whose matrices project")
  projection_writers: Literal["own", "common"] = _field(
      "own", "matrices that write to the residual stream: each by its own factor, or all by one")
  projection_gains: Literal["keep", "joint", "decay"] = _field(
      "keep", "gains and offsets of norms: left alone, projected jointly, or drawn to their init")
  projection_decay: float = _field(0.99, "projection_gains=decay: share kept at a projection")
  schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = _field(
      "linear", "after the warmup; wsd stays, then falls over decay_steps")
  warmup_fraction: float = _field(0.05, "of the steps, where warmup_steps is not given")
  warmup_steps: int | None = _field(None, "linear from 0; default from warmup_fraction")
  decay_fraction: float = _field(0.2, "wsd: last share of the steps, unless decay_steps is given")
  decay_steps: int | None = _field(None, "wsd: last steps; default from decay_fraction")
  decay_shape: Literal["linear", "one_minus_sqrt"] = _field("linear", "wsd: how the rate falls")
  final_fraction: float = _field(0.0, "learning rate at the end over the peak")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Length, batch and what the run writes."""

  steps: int = _field(1000, "optimiser steps")
  batch_size: int = _field(32, "sequences a step, over all devices and micro-batches")
  sequence_length: int = _field(128, "tokens of a sequence")
  grad_accumulation: int = _field(1, "micro-batches a step")
  z_loss: float = _field(0.0, "weight of mean(log Z ^ 2)")
  seed: int = _field(0, "of initialisation, data order and dropout")
  log_every: int = _field(1, "steps between lines in metrics.jsonl")
  eval_every: int = _field(100, "steps between evaluations; the last step is always one")
  checkpoint_every: int = _field(100, "steps between checkpoints, beside the log-spaced ones")
  checkpoint_log_base: int = _field(2, "log-spaced checkpoints stand at the powers of this")
  init_from: str = _field("", "run directory, or DIR@STEP, whose parameters to start from")
  tensorboard: bool = _field(True, "write TensorBoard events")
  wandb_project: str = _field("", "also log to this Weights & Biases project")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the tokens come from."""

  corpus: str = _field(
      "python_stdlib", "python_stdlib, pypi_code, text:PATH, tfds:NAME or tokens:PATH")
  vocab_size: int = _field(4096, "rows of the embedding; also what the BPE is trained to")
  tokenizer: str = _field("", "a tokenizer.json to use; default: train a byte-level BPE")
  cache_dir: str = _field("~/.cache/of_jax", "folder of tokenised corpora")
  validation_fraction: float = _field(0.05, "share of the files held out")
  eval_sequences: int = _field(128, "sequences of the fixed evaluation set")
  cross_documents: bool = _field(
      True, "attention may cross documents; if not, positions restart at each document")
  begin_token: bool = _field(False, "start every window with a begin token")
  token_dtype: Literal["uint16", "uint32"] = _field("uint16", "of a tokens:*.bin file")
  begin_token_id: int | None = _field(None, "tokens: id of the begin token")
  end_token_id: int | None = _field(None, "tokens: id of the end-of-text token")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the device mesh's axes; -1 takes the devices that are left."""

  data: int = _field(-1, "batch is split, parameters are copied")
  fsdp: int = _field(1, "batch and parameters are split")
  tensor: int = _field(1, "heads, hidden units and vocabulary are split")


@dataclasses.dataclass(frozen=True)
class TelemetryConfig:
  """What is measured inside the train step."""

  level: Literal["off", "basic"] = _field("basic", "which metrics, at which sites")
  every: int = _field(1, "steps between measurements")
  optimizer: bool = _field(False, "also measure updates, second moments and effective rates")


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides a run's numbers. `resolve` before use."""

  model: ModelConfig = ModelConfig()
  optim: OptimConfig = OptimConfig()
  train: TrainConfig = TrainConfig()
  data: DataConfig = DataConfig()
  mesh: MeshConfig = MeshConfig()
  telemetry: TelemetryConfig = TelemetryConfig()


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
  is_op = model.block == "op"
  beta = model.beta
  if beta is None and is_op:
    beta = 1 / math.sqrt(2 * model.depth)
  alpha = model.mlp_input_scale
  if alpha is None:
    alpha = 1 / (model.init_std * math.sqrt(model.width))
  hidden = model.mlp_width
  if hidden is None:
    # Gated forms have three matrices: 8/3 of the width keeps the parameter count.
    hidden = 4 * model.width
    if model.mlp.endswith("glu"):
      hidden = 8 * math.ceil(model.width / 3)
  model = dataclasses.replace(
      model,
      beta=beta,
      beta_attention=beta if model.beta_attention is None else model.beta_attention,
      beta_mlp=beta if model.beta_mlp is None else model.beta_mlp,
      mlp_input_scale=alpha,
      mlp_width=hidden,
      qk_norm=("rms" if is_op else "none") if model.qk_norm == "auto" else model.qk_norm,
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


def _nearest(path: str) -> str:
  known = list(fields())
  name = path.rpartition(".")[2]
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
