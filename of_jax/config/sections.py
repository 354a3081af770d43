"""Fields of a config: typed, frozen, documented, with their defaults, ranges and owners.

A field is declared here (those of `model` in of_jax.config.model_section) and nowhere else: rules
read `field.default`. One whose default is None or "auto" is computed from others by
of_jax.config.resolve.
"""

import dataclasses
from typing import Literal

from of_jax.config.declare import (
    AT_LEAST_ONE,
    AT_LEAST_TWO,
    BELOW_ONE,
    COUNT,
    FRACTION,
    INSIDE_ONE,
    NEGATIVE,
    NOT_NEGATIVE,
    POSITIVE,
    Owner,
    Range,
    field,
)
from of_jax.config.model_section import ModelConfig
from of_jax.config.roles import TRAINED_ROLES

__all__ = ["Config", "DataConfig", "MeshConfig", "ModelConfig", "OptimConfig", "TelemetryConfig",
           "TrainConfig"]

_WSD = Owner("optim.schedule", ("wsd",))
_OPTIMIZER = Owner("optim.name")
# Each is written out in the program, or run in every step.
_ROUNDS = Range("must be at least 1", low=1, most=1_000)
_AXIS = Range("must be at least 1, or -1 for the devices that are left", low=1, also=(-1,),
              most=2 ** 20)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """The optimiser and its learning-rate schedule.

  The fields from `b1` to `grafting` belong to some optimisers and not to others. None means
  the optimiser's own default, which its file states; where it reads no such field, it stays None.
  """

  name: str = field("adamw", "optimiser", "optim/optimizers")
  learning_rate: float = field(1e-3, "peak", ranges=NOT_NEGATIVE)
  b1: float | None = field(None, "decay of the first moment", ranges=BELOW_ONE, owner=_OPTIMIZER)
  b2: float | None = field(None, "decay of the second moment", ranges=BELOW_ONE, owner=_OPTIMIZER)
  eps: float | None = field(
      None, "added to the root of the second moment", ranges=NOT_NEGATIVE, owner=_OPTIMIZER)
  momentum: float | None = field(
      None, "decay of the sum of gradients", ranges=BELOW_ONE, owner=_OPTIMIZER)
  dampening: float | None = field(
      None, "share of the gradient that the sum leaves out", ranges=FRACTION, owner=_OPTIMIZER)
  nesterov: bool | None = field(None, "look ahead along the momentum", owner=_OPTIMIZER)
  delta: float | None = field(
      None, "adamp, sgdp: a weight is scale-invariant below this cosine x sqrt(size)",
      ranges=NOT_NEGATIVE, owner=_OPTIMIZER)
  wd_ratio: float | None = field(
      None, "adamp, sgdp: decay of scale-invariant weights over that of others", ranges=FRACTION,
      owner=_OPTIMIZER)
  decay_exponent: float | None = field(
      None, "adafactor: the second moment's decay is 1 - step^-this", ranges=POSITIVE,
      owner=_OPTIMIZER)
  update_clip: float | None = field(
      None, "adafactor: largest RMS of a matrix's update", ranges=POSITIVE, owner=_OPTIMIZER)
  newton_schulz_steps: int | None = field(
      None, "muon: steps of the orthogonalisation", ranges=_ROUNDS, owner=_OPTIMIZER)
  muon_scale: Literal["width", "rms"] | None = field(
      None, "muon: sqrt(max(1, out / in)), or 0.2 sqrt(max(in, out)), about Adam's size",
      owner=_OPTIMIZER)
  norms: tuple[str, ...] | None = field(
      None, "sinkgd: what is normalised in turn, of rows, columns, matrix and spectrum",
      owner=_OPTIMIZER)
  norm_iterations: int | None = field(
      None, "sinkgd: rounds over all norms", ranges=_ROUNDS, owner=_OPTIMIZER)
  whitening_steps: int | None = field(
      None, "swan: steps of the iteration towards equal singular values", ranges=_ROUNDS,
      owner=_OPTIMIZER)
  swan_scale: float | None = field(
      None, "swan: of the hidden matrices' updates, against Adam's", ranges=POSITIVE,
      owner=_OPTIMIZER)
  shampoo_beta: float | None = field(
      None, "decay of the factors G G^T and G^T G; shampoo: 1 sums them; default b2",
      ranges=FRACTION, owner=_OPTIMIZER)
  precondition_frequency: int | None = field(
      None, "steps between refreshes of the eigenbases or roots", ranges=AT_LEAST_ONE,
      owner=_OPTIMIZER)
  max_precond_dim: int | None = field(
      None, "sides of matrices above this have no factor; the vocabulary never has",
      ranges=AT_LEAST_ONE, owner=_OPTIMIZER)
  precondition_power: float | None = field(
      None, "shampoo: of each factor, -0.5 (He et al. 2024) or -0.25 (Gupta et al. 2018)",
      ranges=NEGATIVE, owner=_OPTIMIZER)
  grafting: Literal["none", "sgd", "adam"] | None = field(
      None, "shampoo: whose norm the update takes, matrix by matrix", owner=_OPTIMIZER)
  moment_dtype: Literal["float32", "bfloat16"] = field(
      "float32", "type that moments are kept in; bfloat16 is rounded to at random")
  weight_decay: float = field(
      0.1, "decoupled; each step decays by learning_rate x this", ranges=NOT_NEGATIVE)
  decay_roles: tuple[str, ...] = field(
      ("embedding", "hidden", "unembedding"), "parameter roles that decay")
  decay_norm_offsets: bool = field(
      True, "with norm in decay_roles: whether what norms add decays too, or their gains alone")
  train_roles: tuple[str, ...] = field(
      TRAINED_ROLES, "parameter roles that are trained; the others keep their initial values")
  lr_multipliers: tuple[str, ...] = field(
      (), "learning rate by parameter role over learning_rate, as in embedding=0.1,gain=3")
  scaling: Literal["none", "mup", "mup_decay"] = field(
      "none", "init, learning rate and decay by role and width / base_width: muP for Adam, or with "
      "the decay that keeps the spectrum's size")
  base_width: int | None = field(
      None, "scaling: the model.width at which nothing is scaled", ranges=AT_LEAST_ONE)
  clip_norm: float | None = field(
      1.0, "largest global gradient norm; none: no clipping", ranges=POSITIVE)
  projection_every: int | None = field(
      None, "steps between projections to the norm at init (NaP); none: no projection",
      ranges=AT_LEAST_ONE)
  projection_roles: tuple[str, ...] = field(("hidden",), "parameter roles whose matrices project")
  projection_writers: Literal["own", "common"] = field(
      "own", "matrices that write to the residual stream: each by its own factor, or all by one")
  projection_gains: Literal["keep", "joint", "decay"] = field(
      "keep", "gains and offsets of norms: left alone, projected jointly, or drawn to their init")
  projection_decay: float = field(
      0.99, "projection_gains=decay: share kept at a projection",
      ranges=FRACTION, owner=Owner("optim.projection_gains", ("decay",)))
  schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = field(
      "linear", "after the warmup; wsd stays, then falls over decay_steps")
  warmup_fraction: float = field(
      0.05, "of the steps, where warmup_steps is not given", ranges=FRACTION)
  warmup_steps: int | None = field(
      None, "linear from 0; default from warmup_fraction", ranges=COUNT)
  decay_fraction: float = field(
      0.2, "wsd: last share of the steps, unless decay_steps is given", ranges=FRACTION, owner=_WSD)
  decay_steps: int | None = field(
      None, "wsd: last steps; default from decay_fraction", ranges=AT_LEAST_ONE, owner=_WSD)
  decay_shape: Literal["linear", "one_minus_sqrt"] = field(
      "linear", "wsd: how the rate falls", owner=_WSD)
  final_fraction: float = field(
      0.0, "learning rate at the end over the peak", ranges=FRACTION,
      owner=Owner("optim.schedule", ("linear", "cosine", "wsd")))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Length, batch and what the run writes."""

  steps: int = field(1000, "optimiser steps", ranges=AT_LEAST_ONE)
  batch_size: int = field(
      32, "sequences a step, over all devices and micro-batches", ranges=AT_LEAST_ONE)
  sequence_length: int = field(128, "tokens of a sequence; 1 for images", ranges=AT_LEAST_ONE)
  grad_accumulation: int = field(1, "micro-batches a step", ranges=AT_LEAST_ONE)
  z_loss: float = field(0.0, "weight of mean(log Z ^ 2)", ranges=NOT_NEGATIVE)
  tweo_weight: float = field(
      0.0, "lambda: weight of the mean over blocks of E[(|output| / tweo_threshold)^tweo_power], "
      "against outliers (TWEO)", ranges=NOT_NEGATIVE)
  tweo_threshold: float = field(
      3.0, "tau: what an entry may reach before the term grows fast", ranges=POSITIVE)
  tweo_power: float = field(
      4.0, "p: how fast it grows",
      ranges=Range("must be at least 1: below, its gradient has no bound near 0", low=1))
  loss_term: str = field(
      "", "a term of your own of the loss, FILE.py:NAME: a function of a block's output [batch, "
      "time, width] that gives a number a token, of which the mean over tokens and blocks is added")
  loss_term_weight: float = field(1.0, "factor of loss_term", ranges=NOT_NEGATIVE)
  seed: int = field(
      0, "of initialisation, data order and dropout",
      ranges=(NOT_NEGATIVE, Range("must be below 2147483648", high=2 ** 31 - 1)))
  log_every: int = field(1, "steps between lines in metrics.jsonl", ranges=AT_LEAST_ONE)
  eval_every: int = field(
      100, "steps between evaluations; the last step is always one", ranges=AT_LEAST_ONE)
  checkpoint_every: int = field(
      100, "steps between checkpoints, beside the log-spaced ones", ranges=AT_LEAST_ONE)
  checkpoint_log_base: int = field(
      2, "log-spaced checkpoints stand at the powers of this", ranges=AT_LEAST_TWO)
  on_divergence: Literal["stop", "skip", "rollback"] = field(
      "stop", "where a loss, gradient or parameter is not finite: end the run, leave the update "
      "out, or go back to the newest checkpoint and on with the batches behind")
  init_from: str = field(
      "", "parameters to start from: a run directory or DIR@STEP, a folder of Hugging Face's "
      "libraries (PATH@single or PATH@sharded of two sets of weights) or the released OF code, or "
      "a .gguf file")
  tensorboard: bool = field(True, "write TensorBoard events")
  wandb_project: str = field("", "also log to this Weights & Biases project")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Source of the tokens or images."""

  corpus: str = field(
      "python_stdlib", "python_stdlib, pypi_code, text:PATH, tfds:NAME, tokens:PATH or "
      "FILE.py:NAME; images: digits, fashion_mnist, fashion_mnist:PATH, cifar10:PATH or tfds:NAME")
  vocab_size: int = field(
      4096, "rows of the embedding; also what the BPE is trained to",
      ranges=AT_LEAST_TWO)
  tokenizer: str = field("", "a tokenizer.json to use; default: train a byte-level BPE")
  text_field: str = field(
      "", "which field is the text, in JSON lines of text:PATH or in tfds:NAME; default text, else "
      "content, and what a data set calls so")
  cache_dir: str = field("~/.cache/of_jax", "folder of tokenised corpora")
  validation_fraction: float = field(
      0.05, "share of the files held out", ranges=INSIDE_ONE)
  eval_sequences: int = field(
      128, "sequences or images of the fixed evaluation set", ranges=AT_LEAST_ONE)
  cross_documents: bool = field(
      True, "attention may cross documents; if not, positions restart at each document")
  begin_token: bool = field(False, "start every window with a begin token")
  token_dtype: Literal["uint16", "uint32"] = field("uint16", "of a tokens:*.bin file")
  begin_token_id: int | None = field(
      None, "id of the begin token; of a given tokenizer, default what its files say",
      ranges=COUNT)
  end_token_id: int | None = field(
      None, "id of the end-of-text token, likewise", ranges=COUNT)
  whitening: Literal["pca", "none"] = field(
      "pca", "images: what the network reads, principal components scaled to variance 1, or "
      "pixels less their mean, all divided by one number")
  input_size: int | None = field(
      None, "images: leading principal components to keep; default as many as pixels",
      ranges=AT_LEAST_ONE)
  classes: int | None = field(
      None, "images: classes; default what the corpus is known to have", ranges=AT_LEAST_TWO)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the device mesh's axes; -1 takes the devices that are left."""

  data: int = field(-1, "batch is split, parameters are copied", ranges=_AXIS)
  fsdp: int = field(1, "batch and parameters are split", ranges=_AXIS)
  tensor: int = field(1, "heads, hidden units and vocabulary are split", ranges=_AXIS)


@dataclasses.dataclass(frozen=True)
class TelemetryConfig:
  """Measurements of a run.

  Most metrics come out of the train step itself. Costly families (attention, gram, massive,
  moment_updates) have programs and cadences of their own.
  """

  level: Literal["off", "basic", "full"] = field(
      "basic", "which metrics, at which sites: a few of the stream, or all of all sites")
  every: int = field(1, "steps between measurements", ranges=AT_LEAST_ONE)
  sites: tuple[str, ...] = field((), "sites to watch; default those of the level")
  metrics: tuple[str, ...] = field((), "metrics to keep; default those of the level")
  cadences: tuple[str, ...] = field(
      (), "steps between measurements of costly families, as in attention=50,gram=0; 0 is never; "
      "default 100")
  user_metrics: tuple[str, ...] = field(
      (), "functions or classes of your own files, as in my_file.py:my_metric")
  quantised_perplexity_every: int = field(
      0, "steps between measurements of the perplexity of an evaluation batch when quantised to "
      "W8A8 by the preset of_jax, a range a token; 0 is never", ranges=COUNT)
  optimizer: bool = field(
      False, "below level full: also measure gradients, updates, second moments and effective "
      "rates by parameter role")


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides a run's numbers. `resolve` before use."""

  model: ModelConfig = ModelConfig()
  optim: OptimConfig = OptimConfig()
  train: TrainConfig = TrainConfig()
  data: DataConfig = DataConfig()
  mesh: MeshConfig = MeshConfig()
  telemetry: TelemetryConfig = TelemetryConfig()
