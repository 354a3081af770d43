"""Rules of the model's fields: which choice reads which, and combinations that cannot be."""

from of_jax.config.kinds import kind_of
from of_jax.config.rules.check import Check
from of_jax.config.sections import ModelConfig

# Field, the value that asks for nothing, and the choice that it belongs to.
_PART_OF = (
    ("model.mlp_input_scale", 1.0, "model.block", "op"),
    ("model.first_attention_norm", False, "model.block", "op"),
    ("model.mix_alpha", 0.25, "model.block", "mix"),
    ("model.residual_scale", "inverse_sqrt_depth", "model.block", "residual_scaled"),
    ("model.norm_gate_rank", 16, "model.block", "gated_norm"),
    ("model.dyt_alpha", 0.5, "model.norm", "dyt"),
    ("model.power_decay", 0.9, "model.norm", "power"),
    ("model.power_warmup_steps", 10_000, "model.norm", "power"),
    ("model.leaky_relu_slope", 0.01, "model.mlp", "leaky_relu"),
    ("model.softmax_zeta", 1.0, "model.attention_softmax", "clipped"),
    ("model.softmax_gamma", None, "model.attention_softmax", "clipped"),
    ("model.attention_gate_init", 0.25, "model.attention_gate", "head"),
    ("model.rope_fraction", 1.0, "model.positions", "rotary"),
    ("model.rope_scaling", "none", "model.positions", "rotary"),
    ("model.rope_low_frequency", 1.0, "model.rope_scaling", "llama3"),
    ("model.rope_high_frequency", 4.0, "model.rope_scaling", "llama3"),
    ("model.rope_original_length", 8192, "model.rope_scaling", "llama3"),
)
# Blocks that have no norm to leave out, or are a model of their own without.
_WITHOUT_NORM = ("pre", "parallel", "op", "residual_scaled")
# Norms that divide by no root of a mean square.
_WITHOUT_EPS = ("dyt", "none")
# Blocks in which no norm's output goes to attention alone.
_NO_ATTENTION_NORM = ("post", "mix", "deepnorm", "output", "parallel")


def validate(model: ModelConfig, check: Check) -> None:
  """What a resolved model must satisfy; `check` raises what fails."""
  if kind_of(model.kind).has_attention:
    _check_transformer(model, check)
  for path, nothing, owner, choice in _PART_OF:
    value, chosen = (getattr(model, p.removeprefix("model.")) for p in (path, owner))
    is_read = choice in _norms(model) if owner == "model.norm" else chosen == choice
    check(is_read or value in (nothing, None), path,
          f"is part of {owner}={choice} and does nothing in {chosen}")
  # The norms of queries, keys and hidden units have dyt_alpha.
  check(model.norm == "dyt" or model.dyt_alpha_attention in (model.dyt_alpha, None),
        "model.dyt_alpha_attention",
        f"is part of model.norm=dyt and does nothing in {model.norm}")
  for path, nothing in (("model.norm_eps", 1e-6), ("model.norm_eps_placement", "inside")):
    check(_has_eps(model) or getattr(model, path.removeprefix("model.")) == nothing, path,
          f"does nothing: model.norm={model.norm} divides by no root, and there is no other norm")
  check((model.final_norm_kind or model.norm) != "none" or not model.final_norm,
        "model.final_norm", "does nothing with model.norm=none")
  check(model.final_norm or model.final_norm_kind in (model.norm, None), "model.final_norm_kind",
        "does nothing without a norm there; set model.final_norm=true")
  check(model.mlp != "sglu" or model.mlp_norm == "none", "model.mlp_norm",
        "sglu has no nonlinearity to stand before")
  check(not model.beta_trainable or model.beta_attention is not None
        or model.beta_mlp is not None or model.skip_gain is not None, "model.beta_trainable",
        "there is no gain to train; set model.beta")
  check(not model.beta_per_channel or model.beta_trainable, "model.beta_per_channel",
        "does nothing to fixed gains; set model.beta_trainable=true")


def _norms(model: ModelConfig) -> set[str]:
  """The norms that a resolved config names, those that no block of it may have included."""
  final = (model.final_norm_kind or model.norm) if model.final_norm else model.norm
  return {model.norm, final, model.qk_norm, model.mlp_norm}


def _has_eps(model: ModelConfig) -> bool:
  """Whether some norm of the model divides by a root."""
  return (model.block == "gated_norm" or model.first_attention_norm
          or bool(_norms(model) - {"auto", *_WITHOUT_EPS}))


def _check_transformer(model: ModelConfig, check: Check) -> None:
  check(model.head_dim is not None, "model.heads",
        f"does not divide model.width={model.width}; "
        f"nearest that does: {_nearest_divisor(model.width, model.heads)}, or give model.head_dim")
  assert model.head_dim is not None
  check(model.positions != "rotary" or model.head_dim % 2 == 0, "model.heads",
        "rotary positions need an even head dimension (width / heads)")
  turned = int(model.head_dim * model.rope_fraction)
  check(model.positions != "rotary" or turned >= 2 and turned % 2 == 0, "model.rope_fraction",
        f"turns {turned} of model.head_dim={model.head_dim} neurons; their number must be even and "
        "above 0")
  check(model.rope_scaling != "none" or model.rope_factor == 1, "model.rope_factor",
        "divides no frequency; set model.rope_scaling=linear or llama3")
  check(model.rope_factor >= 1, "model.rope_factor", "must be at least 1: it slows what turns")
  check(model.rope_low_frequency < model.rope_high_frequency, "model.rope_low_frequency",
        f"must be below model.rope_high_frequency={model.rope_high_frequency:g}")
  check(model.qk_norm_over == "head" or model.qk_norm != "none", "model.qk_norm_over",
        "there is no norm of queries and keys; set model.qk_norm")
  check(model.full_attention_every is None or model.attention_window is not None,
        "model.full_attention_every", "every block sees everything; set model.attention_window")
  assert model.kv_heads is not None
  check(model.heads % model.kv_heads == 0, "model.kv_heads",
        f"does not divide model.heads={model.heads}; "
        f"nearest that does: {_nearest_divisor(model.heads, model.kv_heads)}")
  check(model.norm != "none" or model.block in _WITHOUT_NORM, "model.norm",
        f"model.block={model.block} is the place of its norms; without any, take "
        f"{', '.join(_WITHOUT_NORM)}")
  check(model.attention_gate != "head" or model.heads * model.head_dim == model.width,
        "model.attention_gate", "reads a slice of the stream a head, so heads x head_dim must be "
        f"model.width={model.width}")
  check(model.dyt_alpha_attention == model.dyt_alpha or model.block not in _NO_ATTENTION_NORM,
        "model.dyt_alpha_attention", f"no norm of model.block={model.block} is attention's alone; "
        "leave it equal to model.dyt_alpha")
  check(0 < model.attention_gate_init < 1, "model.attention_gate_init",
        "a sigmoid reaches what lies above 0 and below 1")
  check(model.softmax_zeta >= 1, "model.softmax_zeta", "must be at least 1")
  check(model.softmax_gamma is None or model.softmax_gamma <= 0, "model.softmax_gamma",
        "must not be above 0: masked keys would get a weight")
  check(model.block != "residual_scaled" or model.beta != 0 or model.beta_trainable,
        "model.residual_scale", "a fixed gain of 0 leaves the model without branches; "
        "set model.beta_trainable=true")
  for path in ("model.qk_norm", "model.mlp_norm"):
    check(model.block != "nap" or getattr(model, path.removeprefix("model.")) != "none", path,
          "model.block=nap has a norm before every nonlinearity")
  check(model.block != "nap" or model.attention_gate == "none", "model.attention_gate",
        "no norm stands before the gate's sigmoid, and model.block=nap has one before every "
        "nonlinearity")


def _nearest_divisor(number: int, near: int) -> int:
  return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - near))
