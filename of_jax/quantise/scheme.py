"""Scheme of a quantisation: sites, bits, ranges. Imports no jax: mistakes are found before it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from of_jax.config import Config, traits
from of_jax.config.kinds import kind_of
from of_jax.errors import UserError, closest
from of_jax.quantise import hadamard

BITS = (4, 6, 8, 16)

# Inputs of linear maps; a map quantises its own, with the range of its site.
LINEAR_INPUTS = ("attn_in", "attn_heads", "mlp_in", "mlp_hidden")
# site -> what it holds. The first are probe sites, see of_jax.models.probe.
ACTIVATIONS = {
    "resid_pre": "the stream entering a block: embedding and residual sums",
    "resid_mid": "the stream entering the MLP half: residual sums",
    "resid_post": "the stream leaving the last block",
    "attn_in": "what attention reads: the norm's output where there is one",
    "attn_q": "queries, after QK-norm and rotation", "attn_k": "keys, likewise",
    "attn_v": "values",
    "attn_scores": "queries times keys, scaled and capped, of all pairs: before the mask",
    "attn_logits": "what the softmax reads, masked",
    "attn_weights": "what the softmax gives",
    "attn_context": "what the weights give of the values, before any gate",
    "attn_heads": "what the output projection reads",
    "attn_out": "what attention adds to the stream",
    "mlp_in": "what the MLP reads: the norm's output where there is one",
    "mlp_hidden": "hidden units after the nonlinearity",
    "mlp_out": "what the MLP adds to the stream",
    "attn_sum": "the residual sum that the blocks post and deepnorm norm after attention",
    "mlp_sum": "the residual sum that they norm after the MLP",
    "final_norm": "the final norm's output, where a projection follows",
    "final": "what the unembedding reads"}
# Parameters that no linear map of a block holds.
PARAMETERS = {
    "token_table": "the embedding of tokens; a tied unembedding reads the table as it is",
    "position_table": "the learned positions",
    "norm_gains": "gains a neuron, a range for each norm",
    "embedding_projection": "both matrices"}
KERNELS = {
    "attn_query": "kernel", "attn_key": "kernel", "attn_value": "kernel", "attn_output": "kernel",
    "attn_gate": "kernel of the gate a neuron, where there is one", "mlp_up": "kernel",
    "mlp_gate": "kernel of gated MLPs", "mlp_down": "kernel",
    "unembedding": "the table that gives the logits"}
WEIGHTS = {**PARAMETERS, **KERNELS}
SITES = (*ACTIVATIONS, *WEIGHTS)

# Preset -> the sites that it quantises. Neither has the unembedding, the last product.
OF_JAX, BONDARENKO = PRESETS = ("of_jax", "bondarenko")
DEFAULT_SITES = (*(site for site in ACTIVATIONS if site not in (
    "attn_scores", "attn_context", "attn_sum", "mlp_sum", "final_norm", "final")),
        *(kernel for kernel in KERNELS if kernel != "unembedding"))
# What a module of theirs gives is rounded once. A gate, and what it gives, stays.
_THEIRS = tuple(site for site in SITES if site not in (
    "attn_logits", "attn_heads", "attn_gate", "unembedding"))
SITES_OF = {OF_JAX: DEFAULT_SITES, BONDARENKO: _THEIRS}
# Names for several sites at once, of those of a preset.
GROUPS = {
    "activations": tuple(ACTIVATIONS), "weights": tuple(WEIGHTS),
    "residual": ("resid_pre", "resid_mid", "resid_post", "attn_sum", "mlp_sum"),
    "softmax": ("attn_scores", "attn_logits", "attn_weights"),
    "linear": (*LINEAR_INPUTS, "attn_context", *KERNELS)}

GRANULARITIES = {"weight": ("tensor", "channel", "group"),
                 "activation": ("tensor", "channel", "token")}
RANGES = {"weight": ("min_max", "percentile", "mse"),
          "activation": ("min_max", "running_min_max", "percentile", "mse")}
ARITHMETICS = ("simulated", "integer")


@dataclasses.dataclass(frozen=True)
class Scheme:
  """Settings of a quantisation; defaults are He et al. 2024's, of the preset of_jax.

  `preset_scheme` gives those of a preset.

  Attributes:
    weight_bits, activation_bits: one of BITS. Weights are symmetric, activations asymmetric.
    weight_granularity: one range a tensor, an output channel, or `group_size` inputs of one.
    activation_granularity: one range a tensor, a neuron (attn_logits and attn_weights, which have
      none: a tensor), or a token, found as it passes.
    weight_range, activation_range: how ranges are found, see of_jax.quantise.quantisers.
    group_size: inputs that share a range.
    arithmetic: `simulated`, rounded numbers in float; `integer`, linear maps as int8 x int8 ->
      int32 products.
    sites: the activations that are quantised, of SITES.
    hadamard: whether the residual stream is rotated first, see of_jax.quantise.rotation.
    preset: what the rest is like. `bondarenko`: as in their code, each number rounded once, where
      it is made, with the grids of of_jax.quantise.bondarenko and ranges that are found while all
      else is quantised. `of_jax`: linear maps round what they read, grids are those of
      of_jax.quantise.quantisers, ranges are the unquantised model's.
  """

  weight_bits: int = 8
  activation_bits: int = 8
  weight_granularity: str = "tensor"
  activation_granularity: str = "tensor"
  weight_range: str = "mse"
  activation_range: str = "percentile"
  group_size: int = 32
  arithmetic: str = "simulated"
  sites: tuple[str, ...] = DEFAULT_SITES
  hadamard: bool = False
  preset: str = OF_JAX

  @property
  def is_static(self) -> bool:
    """Tells whether ranges of activations come from calibration."""
    return self.activation_granularity != "token"

  @property
  def is_theirs(self) -> bool:
    """Tells whether the preset is bondarenko."""
    return self.preset == BONDARENKO

  @property
  def bits(self) -> str:
    """Names the bits alone, as in W8A8."""
    return f"W{self.weight_bits}A{self.activation_bits}"

  @property
  def label(self) -> str:
    """Short name, W8A8, or A8 where no weight is quantised; what is not the default follows."""
    default = SITES_OF[self.preset]
    kinds = {"W": (self.weight_bits, WEIGHTS), "A": (self.activation_bits, ACTIVATIONS)}
    there = {kind: sites for kind, (_, sites) in kinds.items() if set(sites) & set(self.sites)}
    usual = [site for site in default if any(site in sites for sites in there.values())]
    missing = [site for site in usual if site not in self.sites]
    added = [site for site in self.sites if site not in usual]
    text = "".join(f"{kind}{kinds[kind][0]}" for kind in there)
    if self.preset != OF_JAX:
      text += f" ({self.preset})"
    if len(missing) + len(added) >= len(self.sites):
      return f"{text} at {', '.join(self.sites)}"
    return (text + (f" without {', '.join(missing)}" if missing else "")
            + (f" and {', '.join(added)}" if added else ""))


def check(scheme: Scheme) -> None:
  """Raises UserError for a scheme that cannot be carried out."""
  for kind in ("weight", "activation"):
    for field, known in (("bits", BITS), ("granularity", GRANULARITIES[kind]),
                         ("range", RANGES[kind])):
      _check_one(f"{kind}_{field}", getattr(scheme, f"{kind}_{field}"), known)
  _check_one("arithmetic", scheme.arithmetic, ARITHMETICS)
  _check_one("preset", scheme.preset, PRESETS)
  if scheme.group_size < 1:
    raise UserError(f"group_size={scheme.group_size}: must be at least 1")
  if not scheme.sites:
    raise UserError("sites: nothing is left to quantise")
  for site in scheme.sites:
    _check_one("sites", site, SITES)
  if not scheme.is_static and scheme.activation_range != "min_max":
    raise UserError(f"activation_range={scheme.activation_range}: a token's range is that of its "
                    "own values, min_max; or choose activation_granularity=tensor")
  if scheme.arithmetic == "integer":
    if scheme.is_theirs:
      raise UserError("preset=bondarenko: their code rounds numbers in float; choose simulated "
                      "arithmetic, or preset=of_jax")
    for field in ("weight_bits", "activation_bits"):
      if getattr(scheme, field) > 8:
        raise UserError(f"{field}={getattr(scheme, field)}: the integer path multiplies int8; "
                        "choose 8 or fewer, or simulated arithmetic")
    if scheme.activation_granularity == "channel":
      raise UserError("activation_granularity=channel: a range a neuron cannot be taken out of an "
                      "integer product; choose tensor or token, or simulated arithmetic")


def check_model(scheme: Scheme, config: Config) -> None:
  """Raises UserError for a model that a scheme cannot be carried out on."""
  model = config.model
  if not kind_of(model.kind).is_quantisable:
    raise UserError(f"config.model.kind={model.kind}: quantisation is of transformers; perplexity "
                    "is of tokens")
  if scheme.weight_granularity == "group":
    assert model.head_dim is not None and model.mlp_width is not None, "resolve the config first"
    for what, inputs in (("model.width", model.width), ("model.mlp_width", model.mlp_width),
                         ("model.heads x head_dim", model.heads * model.head_dim)):
      if inputs % scheme.group_size:
        raise UserError(f"group_size={scheme.group_size}: does not divide {what}={inputs}, inputs "
                        "of a linear map")
  if scheme.hadamard:
    hadamard.check(config)


def preset_scheme(preset: str, **fields: Any) -> Scheme:
  """Makes the scheme of a preset, fields of which may be others; `sites` are the preset's.

  Raises:
    UserError: no such preset.
  """
  _check_one("preset", preset, PRESETS)
  return Scheme(**{"sites": SITES_OF[preset], **fields}, preset=preset)


def of_model(scheme: Scheme, config: Config) -> Scheme:
  """Leaves out the sites where a model has nothing to round, or what another site has rounded.

  Theirs round what a norm, a linear map, a sum or a product gives. A block without norms in front
  of its branches reads the stream, which is rounded where it is summed up.
  """
  model = config.model
  left_out: set[str] = set()
  norms_sums = model.block in ("post", "deepnorm")
  if not norms_sums:
    left_out |= {"attn_sum", "mlp_sum"}
  if model.mlp == "none":
    left_out |= {site for site in SITES if site.startswith("mlp_")}
  if model.attention_keys != "own":
    left_out.add("attn_key")
  if model.attention_values != "own":
    left_out |= {"attn_value", "attn_output"}
  if model.attention == "linear":
    left_out |= {"attn_scores", "attn_logits", "attn_weights"}
  has_norm = model.final_norm and model.final_norm_kind != "none"
  if not (has_norm and model.embedding_projection):
    left_out.add("final_norm")
  if scheme.is_theirs:
    block = traits.block(model.block)
    if (block.norms == "none" or model.norm == "none" or norms_sums
        or block.norm_outputs == "gain" and not block.attention_norm):
      left_out |= {"attn_in", "mlp_in"} - ({"attn_in"} if model.first_attention_norm else set())
    if not (has_norm or model.embedding_projection):
      left_out.add("final")
  else:
    # One number, which is rounded behind the mask or the gate if it is at all.
    pairs = (("attn_scores", "attn_logits"), ("attn_context", "attn_heads"))
    left_out |= {site for site, behind in pairs if behind in scheme.sites}
  return dataclasses.replace(scheme, sites=tuple(
      site for site in scheme.sites if site not in left_out))


def expand(names: Iterable[str], flag: str, preset: str = OF_JAX) -> tuple[str, ...]:
  """Expands names of sites and of GROUPS into sites, in the order of SITES.

  Raises:
    UserError: a name that is neither.
  """
  chosen: set[str] = set()
  for name in names:
    _check_one(flag, name, (*SITES, *GROUPS))
    chosen.update(set(GROUPS[name]) & set(SITES_OF[preset]) if name in GROUPS else {name})
  return tuple(site for site in SITES if site in chosen)


def _check_one(field: str, value: object, known: Iterable[object]) -> None:
  words = list(map(str, known))
  if str(value) not in words:
    close = closest(str(value), words)
    raise UserError(f"{field}={value}: " + (f"did you mean {close}?" if close else
                                            f"must be one of {', '.join(words)}"))
