"""Fields of the section `model`: typed, frozen, documented, with their defaults, see sections."""

import dataclasses
from typing import Literal

from of_jax.config.declare import (
    ANY,
    AT_LEAST_ONE,
    BELOW_ONE,
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Owner,
    Range,
    field,
)

_OP = Owner("model.block", ("op",))
_DYT = Owner("model.norm", ("dyt",))
_POWER = Owner("model.norm", ("power",))
_BATCHES = Owner("model.norm", ("batch", "unified"))
_UNIFIED = Owner("model.norm", ("unified",))
_LINEAR = Owner("model.attention", ("linear",))
_CLIPPED = Owner("model.attention_softmax", ("clipped",))
_ROTARY = Owner("model.positions", ("rotary",))
_LLAMA3 = Owner("model.rope_scaling", ("llama3",))
_YARN = Owner("model.rope_scaling", ("yarn",))
_LONGROPE = Owner("model.rope_scaling", ("longrope",))
_SIZE = Range("must be at least 1", low=1, most=2 ** 24)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer, or a residual MLP on images."""

  kind: str = field(
      "transformer", "on tokens, or on images: x + MLP(norm(x)) a layer, squared error",
      "objectives/tasks")
  block: str = field("pre", "residual block", "models/blocks")
  norm: str = field("rms", "norm of the block and before the unembedding", "models/norms")
  norm_eps: float = field(
      1e-6, "added to the norm's mean square, or to its root", ranges=NOT_NEGATIVE)
  norm_eps_placement: Literal["inside", "outside", "outside_rms"] = field(
      "inside", "eps inside the root (common), outside, or outside but for layer (the released OF "
      "code)")
  dyt_alpha: float = field(0.5, "dyt: alpha at init", ranges=POSITIVE, owner=_DYT)
  dyt_alpha_attention: float | None = field(
      None, "dyt: alpha at init of the norms that attention reads; default dyt_alpha",
      ranges=POSITIVE)
  power_decay: float = field(
      0.9, "power: decay of the running statistics, of both passes", ranges=BELOW_ONE, owner=_POWER)
  power_warmup_steps: int = field(
      10_000, "power: steps that divide by the batch's statistic, before the running one",
      ranges=COUNT, owner=_POWER)
  running_decay: float = field(
      0.9, "batch, unified: decay of the running statistics", ranges=BELOW_ONE, owner=_BATCHES)
  unified_window: int = field(
      4, "unified: steps whose mean squares and gradients are averaged",
      ranges=Range("must be at least 2", low=2, most=10_000), owner=_UNIFIED)
  unified_warmup_steps: int = field(
      4000, "unified: steps that use their own statistics, before those of the window",
      ranges=COUNT, owner=_UNIFIED)
  unified_filter: bool = field(
      False, "unified: skip batches whose statistics stand out (the authors' choice on images)",
      owner=_UNIFIED)
  width: int = field(128, "d: neurons of the residual stream", ranges=_SIZE)
  depth: int = field(6, "L: blocks", ranges=Range("must be at least 1", low=1, most=10_000))
  heads: int = field(
      4, "attention heads; must divide the width unless head_dim is given", ranges=_SIZE)
  head_dim: int | None = field(None, "neurons of a head; default width / heads", ranges=_SIZE)
  kv_heads: int | None = field(
      None, "heads of keys and values, shared by groups of heads; default heads", ranges=_SIZE)
  mlp: str = field("relu", "form of the MLP", "models/mlps")
  mlp_width: int | None = field(
      None, "hidden units; default 4 x width, or 8/3 x width if gated", ranges=_SIZE)
  mlp_norm: str = field(
      "auto", "norm before the MLP's nonlinearity; auto: rms for nap, else none", "models/norms",
      "over_any_axis")
  leaky_relu_slope: float = field(
      0.01, "leaky_relu: slope below 0", ranges=ANY, owner=Owner("model.mlp", ("leaky_relu",)))
  positions: Literal["learned", "rotary", "none"] = field("learned", "position information")
  rope_theta: float = field(10_000.0, "base of the rotary frequencies", ranges=POSITIVE)
  rope_fraction: float = field(
      1.0, "rotary: share of a head's neurons that turn, the first ones",
      ranges=(POSITIVE, FRACTION), owner=_ROTARY)
  rope_scaling: Literal["none", "linear", "dynamic", "yarn", "longrope", "llama3"] = field(
      "none", "rotary: which frequencies are divided by rope_factor: none, all, all the more the "
      "longer the sequence, the slow ones, each by its own, the slow ones", owner=_ROTARY)
  rope_factor: float = field(1.0, "rotary: by how much", ranges=ANY)
  rope_gain: float = field(
      1.0, "yarn, longrope: multiplies queries and keys where they turn", ranges=POSITIVE,
      owner=Owner("model.rope_scaling", ("yarn", "longrope")))
  rope_fast_turns: float = field(
      32.0, "yarn: turns within rope_original_length from which on a frequency stays as it is",
      ranges=POSITIVE, owner=_YARN)
  rope_slow_turns: float = field(
      1.0, "yarn: turns below which it is slow", ranges=POSITIVE, owner=_YARN)
  rope_whole_pairs: bool = field(
      True, "yarn: round where the fast and the slow begin to whole frequencies", owner=_YARN)
  rope_short_divisors: tuple[float, ...] = field(
      (), "longrope: of each frequency in sequences up to rope_original_length", ranges=ANY,
      owner=_LONGROPE)
  rope_long_divisors: tuple[float, ...] = field(
      (), "longrope: of each frequency in longer ones", ranges=ANY, owner=_LONGROPE)
  rope_low_frequency: float = field(
      1.0, "llama3: turns within rope_original_length below which a frequency is slow",
      ranges=POSITIVE, owner=_LLAMA3)
  rope_high_frequency: float = field(
      4.0, "llama3: turns from which on it stays as it is", ranges=ANY, owner=_LLAMA3)
  rope_original_length: int = field(
      8192, "tokens that the model was made for at first", ranges=AT_LEAST_ONE,
      owner=Owner("model.rope_scaling", ("dynamic", "yarn", "longrope", "llama3")))
  embedding_scale: float = field(1.0, "multiplies token plus position embedding", ranges=POSITIVE)
  embedding_norm: bool = field(False, "norm of what the first block reads")
  embedding_projection: bool = field(
      False, "orthogonal matrices behind the embedding and before the unembedding (OSP)")
  tied_embeddings: bool = field(False, "unembed with the token embedding's transpose")
  final_norm: bool = field(False, "norm before the unembedding")
  final_norm_kind: str | None = field(None, "which one; default norm", "models/norms")
  logit_cap: float | None = field(
      None, "c: the model's logits become c tanh(logits / c)", ranges=POSITIVE)
  attention: Literal["softmax", "linear"] = field(
      "softmax", "softmax, or linear with decay, gate and norm (TransNormerLLM)")
  attention_keys: Literal["own", "queries", "input"] = field(
      "own", "matrix of the keys: its own; that of the queries, so that scores are symmetric; "
      "none, keys are what attention reads")
  attention_values: Literal["own", "input"] = field(
      "own", "matrices of values and output: their own; none, each head mixes a slice of what "
      "attention reads")
  linear_positions: Literal["none", "first", "all"] = field(
      "none", "linear: trained angles of queries and keys (LRPE): in no block (its code), in the "
      "first (its text), in all", owner=_LINEAR)
  linear_chunk: int = field(
      256, "linear: tokens of which all pairs are computed; a state passes on what is before",
      ranges=AT_LEAST_ONE, owner=_LINEAR)
  qk_norm: str = field(
      "auto", "norm of queries and keys over the head dimension; auto: rms for op and nap, "
      "else none", "models/norms", "over_any_axis")
  qk_norm_over: Literal["head", "width"] = field(
      "head", "what that norm is over: a head, or all heads together (OLMo 2)")
  qk_bias: bool = field(False, "bias on queries and keys")
  linear_bias: bool = field(False, "bias on every linear map of the blocks, as in GPT-2")
  attention_scale: float | None = field(
      None, "multiplies q k^T; none: 1 / sqrt(head_dim)", ranges=POSITIVE)
  attention_cap: float | None = field(None, "c: logits become c tanh(logits / c)", ranges=POSITIVE)
  attention_clip: float | None = field(
      None, "c: queries, keys and values are held between -c and c, before positions (OLMo)",
      ranges=POSITIVE)
  attention_window: int | None = field(
      None, "tokens that a query sees, itself included; none: all before it", ranges=AT_LEAST_ONE)
  full_attention_every: int | None = field(
      None, "n: blocks n, 2n and so on have no attention_window; none: all have it",
      ranges=AT_LEAST_ONE)
  attention_softmax: str = field(
      "plain", "from attention's logits to its weights", "models/softmaxes")
  softmax_zeta: float = field(
      1.0, "clipped: where the stretched softmax ends", ranges=AT_LEAST_ONE, owner=_CLIPPED)
  softmax_gamma: float | None = field(
      None, "clipped: where it begins; default -12 / sequence_length",
      ranges=Range("must not be above 0: masked keys would get a weight", high=0), owner=_CLIPPED)
  attention_sink: Literal["none", "key_value"] = field(
      "none", "a learned key and value a head beside those of the tokens")
  attention_gate: str = field("none", "gate on the heads' outputs", "models/gates")
  attention_gate_init: float = field(
      0.25, "head: value of the gate at init",
      ranges=Range("a sigmoid reaches what lies above 0 and below 1", above=0, below=1),
      owner=Owner("model.attention_gate", ("head",)))
  sigma_reparam: Literal["none", "attention", "block"] = field(
      "none", "matrices with a trained spectral norm: none, attention's, the MLP's too")
  beta: float | None = field(
      None, "gain of both branches; default 1 / sqrt(2 depth) for op, residual_scale for "
      "residual_scaled, else no gain", ranges=ANY)
  beta_attention: float | None = field(
      None, "gain of the attention branch; default beta", ranges=ANY)
  beta_mlp: float | None = field(None, "gain of the MLP branch; default beta", ranges=ANY)
  beta_trainable: bool = field(False, "train the gains")
  beta_per_channel: bool = field(False, "a gain a channel (LayerScale), else one a branch")
  skip_gain: float | None = field(
      None, "gain of both skips, trained with beta_trainable; none: 1, never trained",
      ranges=POSITIVE)
  mlp_input_scale: float | None = field(
      1.0, "op: alpha, multiplies the MLP's input; none: 1 / (init_std sqrt(width))",
      ranges=POSITIVE, owner=_OP)
  mix_alpha: float = field(
      0.25, "mix: share of the blocks that are post", ranges=FRACTION,
      owner=Owner("model.block", ("mix",)))
  residual_scale: Literal["inverse_depth", "inverse_sqrt_depth", "zero"] = field(
      "inverse_sqrt_depth", "residual_scaled: beta's default",
      owner=Owner("model.block", ("residual_scaled",)))
  norm_gate_rank: int = field(
      16, "gated_norm: rank of the gates", ranges=_SIZE,
      owner=Owner("model.block", ("gated_norm",)))
  first_attention_norm: bool = field(
      False, "op: LayerNorm on the attention input of block 0 (the released OF code)", owner=_OP)
  dropout: float = field(0.0, "share of each branch's output that training drops", ranges=BELOW_ONE)
  embedding_dropout: float | None = field(
      None, "of the embedding; default dropout, OPT's is 0", ranges=BELOW_ONE)
  attention_dropout: float = field(
      0.0, "of attention's weights, which then are computed unfused", ranges=BELOW_ONE)
  init_std: float = field(0.02, "standard deviation of every matrix at init", ranges=NOT_NEGATIVE)
  attention_init: Literal["normal", "uniform"] = field(
      "normal", "attention's matrices and its gate's: of init_std with offsets of 0, or as "
      "torch.nn.Linear, both uniform within 1 / sqrt(inputs)")
  position_init_std: float | None = field(
      None, "of the position table; default init_std / 2, as in the original GPT-2",
      ranges=NOT_NEGATIVE)
  scan_layers: bool = field(True, "run the blocks as one scan, else unrolled")
  remat: Literal["none", "dots", "full"] = field(
      "none", "what the backward pass recomputes: nothing, all but matrix products, all")
  compute_dtype: Literal["float32", "bfloat16"] = field(
      "float32", "type of activations and products; parameters stay float32")
