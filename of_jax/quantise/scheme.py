"""Scheme of a quantisation: sites, bits, ranges. Imports no jax: mistakes are found before it."""

import dataclasses
from collections.abc import Iterable

from of_jax.config import Config
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
    "attn_v": "values", "attn_logits": "what the softmax reads",
    "attn_weights": "what the softmax gives", "attn_heads": "what the output projection reads",
    "attn_out": "what attention adds to the stream",
    "mlp_in": "what the MLP reads: the norm's output where there is one",
    "mlp_hidden": "hidden units after the nonlinearity",
    "mlp_out": "what the MLP adds to the stream",
    "final": "what the unembedding reads"}
WEIGHTS = {
    "attn_query": "kernel", "attn_key": "kernel", "attn_value": "kernel", "attn_output": "kernel",
    "attn_gate": "kernel of the gate a neuron, where there is one", "mlp_up": "kernel",
    "mlp_gate": "kernel of gated MLPs", "mlp_down": "kernel",
    "unembedding": "the table that gives the logits"}
SITES = (*ACTIVATIONS, *WEIGHTS)
# Bondarenko et al. 2023 (2306.12929), whose settings He et al. 2024 use, leave the last product.
DEFAULT_SITES = tuple(site for site in SITES if site not in ("final", "unembedding"))
# Names for several sites at once, of the default.
GROUPS = {
    "activations": tuple(site for site in DEFAULT_SITES if site in ACTIVATIONS),
    "weights": tuple(site for site in DEFAULT_SITES if site in WEIGHTS),
    "residual": ("resid_pre", "resid_mid", "resid_post"),
    "softmax": ("attn_logits", "attn_weights"),
    "linear": (*LINEAR_INPUTS, *(site for site in DEFAULT_SITES if site in WEIGHTS))}

GRANULARITIES = {"weight": ("tensor", "channel", "group"),
                 "activation": ("tensor", "channel", "token")}
RANGES = {"weight": ("min_max", "percentile", "mse"),
          "activation": ("min_max", "running_min_max", "percentile", "mse")}
ARITHMETICS = ("simulated", "integer")


@dataclasses.dataclass(frozen=True)
class Scheme:
  """Settings of a quantisation; defaults are He et al. 2024's, after Bondarenko et al.'s code.

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

  @property
  def is_static(self) -> bool:
    """Tells whether ranges of activations come from calibration."""
    return self.activation_granularity != "token"

  @property
  def label(self) -> str:
    """Short name, W8A8, or A8 where no weight is quantised; sites follow, unless the default."""
    kinds = {"W": (self.weight_bits, WEIGHTS), "A": (self.activation_bits, ACTIVATIONS)}
    there = {kind: sites for kind, (_, sites) in kinds.items() if set(sites) & set(self.sites)}
    usual = [site for site in DEFAULT_SITES if any(site in sites for sites in there.values())]
    missing = [site for site in usual if site not in self.sites]
    added = [site for site in self.sites if site not in usual]
    text = "".join(f"{kind}{kinds[kind][0]}" for kind in there)
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


def expand(names: Iterable[str], flag: str) -> tuple[str, ...]:
  """Expands names of sites and of GROUPS into sites, in the order of SITES.

  Raises:
    UserError: a name that is neither.
  """
  chosen: set[str] = set()
  for name in names:
    _check_one(flag, name, (*SITES, *GROUPS))
    chosen.update(GROUPS.get(name, (name,)))
  return tuple(site for site in SITES if site in chosen)


def _check_one(field: str, value: object, known: Iterable[object]) -> None:
  words = list(map(str, known))
  if str(value) not in words:
    close = closest(str(value), words)
    raise UserError(f"{field}={value}: " + (f"did you mean {close}?" if close else
                                            f"must be one of {', '.join(words)}"))
