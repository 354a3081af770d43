"""The fields of a config: typed, frozen, documented, with their defaults.

A field whose default is None or "auto" is computed from others by of_jax.config.resolve.
"""

import dataclasses
from typing import Any, Literal

from of_jax.config.roles import TRAINED_ROLES


def _field(default: Any, doc: str, folder: str = "", trait: str = "") -> Any:
  """A documented field; `folder` names the folder of files that its value chooses from.

  With a `trait`, from those files alone whose constant of that name is true, and "auto".
  """
  return dataclasses.field(default=default, metadata={
      "doc": doc, "folder": folder, "trait": trait})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer, or a residual MLP on images."""

  kind: str = _field(
      "transformer", "on tokens, or on images: x + MLP(norm(x)) a layer, squared error",
      "objectives/tasks")
  block: str = _field("pre", "residual block", "models/blocks")
  norm: str = _field("rms", "norm of the block and before the unembedding", "models/norms")
  norm_eps: float = _field(1e-6, "added to the norm's mean square, or to its root")
  norm_eps_placement: Literal["inside", "outside", "outside_rms"] = _field(
      "inside", "eps inside the root (common), outside, or outside but for layer (the released OF "
      "code)")
  dyt_alpha: float = _field(0.5, "dyt: alpha at init")
  dyt_alpha_attention: float | None = _field(
      None, "dyt: alpha at init of the norms that attention reads; default dyt_alpha")
  power_decay: float = _field(0.9, "power: decay of the running statistics, of both passes")
  power_warmup_steps: int = _field(
      10_000, "power: steps that divide by the batch's statistic, before the running one")
  width: int = _field(128, "d: neurons of the residual stream")
  depth: int = _field(6, "L: blocks")
  heads: int = _field(4, "attention heads; must divide the width unless head_dim is given")
  head_dim: int | None = _field(None, "neurons of a head; default width / heads")
  kv_heads: int | None = _field(
      None, "heads of keys and values, shared by groups of heads; default heads")
  mlp: str = _field("relu", "form of the MLP", "models/mlps")
  mlp_width: int | None = _field(None, "hidden units; default 4 x width, or 8/3 x width if gated")
  mlp_norm: str = _field(
      "auto", "norm before the MLP's nonlinearity; auto: rms for nap, else none", "models/norms",
      "OVER_ANY_AXIS")
  leaky_relu_slope: float = _field(0.01, "leaky_relu: slope below 0")
  positions: Literal["learned", "rotary"] = _field("learned", "position information")
  rope_theta: float = _field(10_000.0, "base of the rotary frequencies")
  rope_fraction: float = _field(1.0, "rotary: share of a head's neurons that turn, the first ones")
  rope_scaling: Literal["none", "linear", "llama3"] = _field(
      "none", "rotary: which frequencies are divided by rope_factor: none, all, or the slow ones")
  rope_factor: float = _field(1.0, "rotary: by how much")
  rope_low_frequency: float = _field(
      1.0, "llama3: turns within rope_original_length below which a frequency is slow")
  rope_high_frequency: float = _field(4.0, "llama3: turns from which on it stays as it is")
  rope_original_length: int = _field(8192, "llama3: tokens that the model was made for at first")
  embedding_scale: float = _field(1.0, "multiplies token plus position embedding")
  embedding_norm: bool = _field(False, "norm of what the first block reads")
  embedding_projection: bool = _field(
      False, "orthogonal matrices behind the embedding and before the unembedding (OSP)")
  tied_embeddings: bool = _field(False, "unembed with the token embedding's transpose")
  final_norm: bool = _field(False, "norm before the unembedding")
  final_norm_kind: str | None = _field(None, "which one; default norm", "models/norms")
  logit_cap: float | None = _field(None, "c: the model's logits become c tanh(logits / c)")
  qk_norm: str = _field(
      "auto", "norm of queries and keys over the head dimension; auto: rms for op and nap, "
      "else none", "models/norms", "OVER_ANY_AXIS")
  qk_norm_over: Literal["head", "width"] = _field(
      "head", "what that norm is over: a head, or all heads together (OLMo 2)")
  qk_bias: bool = _field(False, "bias on queries and keys")
  linear_bias: bool = _field(False, "bias on every linear map of the blocks, as in GPT-2")
  attention_scale: float | None = _field(
      None, "multiplies q k^T; none: 1 / sqrt(head_dim)")
  attention_cap: float | None = _field(None, "c: logits become c tanh(logits / c)")
  attention_window: int | None = _field(
      None, "tokens that a query sees, itself included; none: all before it")
  full_attention_every: int | None = _field(
      None, "n: blocks n, 2n and so on have no attention_window; none: all have it")
  attention_softmax: str = _field(
      "plain", "from attention's logits to its weights", "models/softmaxes")
  softmax_zeta: float = _field(1.0, "clipped: where the stretched softmax ends")
  softmax_gamma: float | None = _field(
      None, "clipped: where it begins; default -12 / sequence_length")
  attention_sink: Literal["none", "key_value"] = _field(
      "none", "a learned key and value a head beside those of the tokens")
  attention_gate: str = _field("none", "gate on the heads' outputs", "models/gates")
  attention_gate_init: float = _field(0.25, "head: value of the gate at init")
  sigma_reparam: Literal["none", "attention", "block"] = _field(
      "none", "matrices with a trained spectral norm: none, attention's, the MLP's too")
  beta: float | None = _field(
      None, "gain of both branches; default 1 / sqrt(2 depth) for op, residual_scale for "
      "residual_scaled, else no gain")
  beta_attention: float | None = _field(None, "gain of the attention branch; default beta")
  beta_mlp: float | None = _field(None, "gain of the MLP branch; default beta")
  beta_trainable: bool = _field(False, "train the gains")
  beta_per_channel: bool = _field(False, "a gain a channel (LayerScale), else one a branch")
  skip_gain: float | None = _field(
      None, "gain of both skips, trained with beta_trainable; none: 1, never trained")
  mlp_input_scale: float | None = _field(
      1.0, "op: alpha, multiplies the MLP's input; none: 1 / (init_std sqrt(width))")
  mix_alpha: float = _field(0.25, "mix: share of the blocks that are post")
  residual_scale: Literal["inverse_depth", "inverse_sqrt_depth", "zero"] = _field(
      "inverse_sqrt_depth", "residual_scaled: beta's default")
  norm_gate_rank: int = _field(16, "gated_norm: rank of the gates")
  first_attention_norm: bool = _field(
      False, "op: LayerNorm on the attention input of block 0 (the released OF code)")
  dropout: float = _field(0.0, "share of each branch's output that training drops")
  embedding_dropout: float | None = _field(None, "of the embedding; default dropout, OPT's is 0")
  attention_dropout: float = _field(0.0, "of attention's weights, which then are computed unfused")
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
  moment_dtype: Literal["float32", "bfloat16"] = _field(
      "float32", "type that moments are kept in; bfloat16 is rounded to at random")
  weight_decay: float = _field(0.1, "decoupled; each step decays by learning_rate x this")
  decay_roles: tuple[str, ...] = _field(
      ("embedding", "hidden", "unembedding"), "parameter roles that decay")
  train_roles: tuple[str, ...] = _field(
      TRAINED_ROLES, "parameter roles that are trained; the others keep their initial values")
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
  sequence_length: int = _field(128, "tokens of a sequence; 1 for images")
  grad_accumulation: int = _field(1, "micro-batches a step")
  z_loss: float = _field(0.0, "weight of mean(log Z ^ 2)")
  tweo_weight: float = _field(
      0.0, "lambda: weight of the mean over blocks of E[(|output| / tweo_threshold)^tweo_power], "
      "against outliers (TWEO)")
  tweo_threshold: float = _field(3.0, "tau: what an entry may reach before the term grows fast")
  tweo_power: float = _field(4.0, "p: how fast it grows")
  seed: int = _field(0, "of initialisation, data order and dropout")
  log_every: int = _field(1, "steps between lines in metrics.jsonl")
  eval_every: int = _field(100, "steps between evaluations; the last step is always one")
  checkpoint_every: int = _field(100, "steps between checkpoints, beside the log-spaced ones")
  checkpoint_log_base: int = _field(2, "log-spaced checkpoints stand at the powers of this")
  init_from: str = _field(
      "", "parameters to start from: a run directory or DIR@STEP, a folder of Hugging Face's "
      "libraries or the released OF code, or a .gguf file")
  tensorboard: bool = _field(True, "write TensorBoard events")
  wandb_project: str = _field("", "also log to this Weights & Biases project")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the tokens or images come from."""

  corpus: str = _field(
      "python_stdlib", "python_stdlib, pypi_code, text:PATH, tfds:NAME or tokens:PATH; images: "
      "digits, fashion_mnist, fashion_mnist:PATH, cifar10:PATH or tfds:NAME")
  vocab_size: int = _field(4096, "rows of the embedding; also what the BPE is trained to")
  tokenizer: str = _field("", "a tokenizer.json to use; default: train a byte-level BPE")
  cache_dir: str = _field("~/.cache/of_jax", "folder of tokenised corpora")
  validation_fraction: float = _field(0.05, "share of the files held out")
  eval_sequences: int = _field(128, "sequences or images of the fixed evaluation set")
  cross_documents: bool = _field(
      True, "attention may cross documents; if not, positions restart at each document")
  begin_token: bool = _field(False, "start every window with a begin token")
  token_dtype: Literal["uint16", "uint32"] = _field("uint16", "of a tokens:*.bin file")
  begin_token_id: int | None = _field(None, "tokens: id of the begin token")
  end_token_id: int | None = _field(None, "tokens: id of the end-of-text token")
  whitening: Literal["pca", "none"] = _field(
      "pca", "images: what the network reads, principal components scaled to variance 1, or "
      "pixels less their mean, all divided by one number")
  input_size: int | None = _field(
      None, "images: leading principal components to keep; default as many as pixels")
  classes: int | None = _field(None, "images: classes; default what the corpus is known to have")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the device mesh's axes; -1 takes the devices that are left."""

  data: int = _field(-1, "batch is split, parameters are copied")
  fsdp: int = _field(1, "batch and parameters are split")
  tensor: int = _field(1, "heads, hidden units and vocabulary are split")


@dataclasses.dataclass(frozen=True)
class TelemetryConfig:
  """What is measured of a run.

  Most metrics come out of the train step itself. Costly families (attention, gram, massive,
  moment_updates) have programs and cadences of their own.
  """

  level: Literal["off", "basic", "full"] = _field(
      "basic", "which metrics, at which sites: a few of the stream, or all of all sites")
  every: int = _field(1, "steps between measurements")
  sites: tuple[str, ...] = _field((), "sites to watch; default those of the level")
  metrics: tuple[str, ...] = _field((), "metrics to keep; default those of the level")
  cadences: tuple[str, ...] = _field(
      (), "steps between measurements of costly families, as in attention=50,gram=0; 0 is never; "
      "default 100")
  user_metrics: tuple[str, ...] = _field(
      (), "functions or classes of your own files, as in my_file.py:my_metric")
  quantised_perplexity_every: int = _field(
      0, "steps between measurements of the perplexity of an evaluation batch when quantised to "
      "W8A8; 0 is never")
  optimizer: bool = _field(
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
