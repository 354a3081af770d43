"""Rules of the model's fields: what its block, norms, MLP and gate ask of one another."""

import math

from of_jax import variants
from of_jax.config import traits
from of_jax.config.kinds import kind_of
from of_jax.config.rules.check import Check
from of_jax.config.rules.fields import check_owners, default, owner
from of_jax.config.sections import Config, ModelConfig


def validate(config: Config, check: Check) -> None:
  """Checks what a resolved model must satisfy; `check` raises what fails."""
  model = config.model
  if kind_of(model.kind).has_attention:
    _check_transformer(model, check)
  else:
    check(model.mlp != "none", "model.mlp", f"model.kind={model.kind} is made of its MLPs")
  # Queries, keys and hidden units may have a norm that the block has not.
  check_owners(config, "model", check, {"model.norm": _norms(model)})
  _check_norms(model, check)
  check(not model.beta_trainable or model.beta_attention is not None
        or model.beta_mlp is not None or model.skip_gain is not None, "model.beta_trainable",
        "there is no gain to train; set model.beta")
  check(not model.beta_per_channel or model.beta_trainable, "model.beta_per_channel",
        "does nothing to fixed gains; set model.beta_trainable=true")


def _check_norms(model: ModelConfig, check: Check) -> None:
  """Checks that what is set of norms has a norm to act on."""
  # The norms of queries, keys and hidden units have dyt_alpha.
  (reader,) = owner("model.dyt_alpha").choices
  check(model.norm == reader or model.dyt_alpha_attention in (model.dyt_alpha, None),
        "model.dyt_alpha_attention",
        f"is part of model.norm={reader} and does nothing in {model.norm}")
  for name, trait in (("norm_eps", "has_eps"), ("norm_eps_placement", "has_root")):
    path = f"model.{name}"
    check(_some_norm(model, trait) or getattr(model, name) == default(path), path,
          f"does nothing: model.norm={model.norm} divides by no root, and there is no other norm")
  check((model.final_norm_kind or model.norm) != "none" or not model.final_norm,
        "model.final_norm", "does nothing with model.norm=none")
  check(model.final_norm or model.final_norm_kind in (model.norm, None), "model.final_norm_kind",
        "does nothing without a norm there; set model.final_norm=true")
  check(traits.mlp(model.mlp).has_nonlinearity or model.mlp_norm == "none", "model.mlp_norm",
        f"{model.mlp} has no nonlinearity that it could stand before")


def _norms(model: ModelConfig) -> set[str]:
  """Norms that a resolved config names, those that no block of it may have included."""
  final = (model.final_norm_kind or model.norm) if model.final_norm else model.norm
  return {model.norm, final, model.qk_norm, model.mlp_norm}


def _some_norm(model: ModelConfig, trait: str) -> bool:
  """Whether some norm of the model has `has_eps` or `has_root`."""
  return (model.block == "gated_norm" or model.first_attention_norm or model.attention == "linear"
          or any(traits.norm(name).has_eps and getattr(traits.norm(name), trait)
                 for name in _norms(model) - {"auto"}))


def _check_transformer(model: ModelConfig, check: Check) -> None:
  """Checks heads, positions and attention, and what the block asks of them."""
  check(model.head_dim is not None, "model.heads",
        f"does not divide model.width={model.width}; "
        f"nearest that does: {_nearest_divisor(model.width, model.heads)}, or give model.head_dim")
  assert model.head_dim is not None
  _check_positions(model, model.head_dim, check)
  _check_attention(model, check)
  check(model.qk_norm_over == default("model.qk_norm_over") or model.qk_norm != "none",
        "model.qk_norm_over", "there is no norm of queries and keys; set model.qk_norm")
  check(model.full_attention_every is None or model.attention_window is not None,
        "model.full_attention_every", "every block sees everything; set model.attention_window")
  assert model.kv_heads is not None
  check(model.heads % model.kv_heads == 0, "model.kv_heads",
        f"does not divide model.heads={model.heads}; "
        f"nearest that does: {_nearest_divisor(model.heads, model.kv_heads)}")
  check(traits.gate(model.attention_gate).reads != "slices"
        or model.heads * model.head_dim == model.width,
        "model.attention_gate", "reads a slice of the stream a head, so heads x head_dim must be "
        f"model.width={model.width}")
  _check_block(model, check)


def _check_attention(model: ModelConfig, check: Check) -> None:
  """Checks that linear attention is given nothing that only softmax attention reads."""
  _check_collapsed(model, check)
  if model.attention != "linear":
    return
  for name in ("attention_scale", "attention_cap", "attention_clip", "attention_window",
               "full_attention_every", "attention_softmax", "attention_sink", "attention_gate",
               "attention_dropout", "attention_keys", "attention_values"):
    path = f"model.{name}"
    check(getattr(model, name) == default(path), path,
          "is part of model.attention=softmax and does nothing in linear")
  check(model.qk_norm == "none", "model.qk_norm", "model.attention=linear has one norm, of what "
        "all heads give; set model.qk_norm=none")
  check(model.kv_heads == model.heads, "model.kv_heads", "model.attention=linear has a key and a "
        f"value a head; leave it at model.heads={model.heads}")
  check(model.positions != "rotary", "model.positions", "model.attention=linear has angles of its "
        "own; set model.linear_positions=all, or model.positions=none")


def _check_collapsed(model: ModelConfig, check: Check) -> None:
  """Checks that what stands in for matrices of attention has their sizes."""
  assert model.head_dim is not None
  check(model.attention_keys == "own" or model.kv_heads == model.heads, "model.attention_keys",
        f"{model.attention_keys}: a key a query; leave model.kv_heads at model.heads={model.heads}")
  check(model.attention_keys != "input" or model.heads == 1 and model.head_dim == model.width,
        "model.attention_keys", "input: keys are the stream itself; set model.heads=1 and leave "
        "model.head_dim out")
  check(model.attention_values != "input" or model.kv_heads == model.heads
        and model.heads * model.head_dim == model.width, "model.attention_values",
        "input: values are slices of the stream, so heads x head_dim must be "
        f"model.width={model.width}, and model.kv_heads=model.heads")


def _check_positions(model: ModelConfig, head_dim: int, check: Check) -> None:
  """Checks what rotary positions turn, and how fast."""
  check(model.positions != "rotary" or head_dim % 2 == 0, "model.heads",
        "rotary positions need an even head dimension (width / heads)")
  turned = int(head_dim * model.rope_fraction)
  check(model.positions != "rotary" or turned >= 2 and turned % 2 == 0, "model.rope_fraction",
        f"turns {turned} of model.head_dim={head_dim} neurons; their number must be even and "
        "above 0")
  check(model.rope_scaling not in ("none", "longrope")
        or model.rope_factor == default("model.rope_factor"),
        "model.rope_factor", "divides no frequency; set model.rope_scaling=linear or llama3")
  check(model.rope_factor >= 1, "model.rope_factor", "must be at least 1: it slows what turns")
  check(model.rope_low_frequency < model.rope_high_frequency, "model.rope_low_frequency",
        f"must be below model.rope_high_frequency={model.rope_high_frequency:g}")
  check(model.rope_slow_turns <= model.rope_fast_turns, "model.rope_slow_turns",
        f"must not be above model.rope_fast_turns={model.rope_fast_turns:g}")
  check(model.rope_scaling not in ("dynamic", "yarn") or turned > 2, "model.rope_scaling",
        f"{model.rope_scaling} needs more than one frequency; {turned} neurons of a head turn")
  check(model.rope_scaling != "yarn" or model.rope_theta > 1, "model.rope_theta",
        "must be above 1 with model.rope_scaling=yarn")
  if model.rope_scaling == "longrope":
    for name in ("short", "long"):
      divisors = getattr(model, f"rope_{name}_divisors")
      check(len(divisors) == turned // 2 and all(number > 0 for number in divisors),
            f"model.rope_{name}_divisors", f"must be {turned // 2} numbers above 0, one for each "
            "pair of neurons of a head that turns")


def _check_block(model: ModelConfig, check: Check) -> None:
  """Checks what the traits of the block ask."""
  block, named = traits.block(model.block), f"model.block={model.block}"
  without = [name for name in variants.names(traits.BLOCKS)
             if traits.block(name).norms != "required"]
  check(model.norm != "none" or block.norms != "required", "model.norm",
        f"{named} is the place of its norms; without any, take {', '.join(without)}")
  optional = [name for name in variants.names(traits.BLOCKS)
              if traits.block(name).mlp == "optional"]
  check(model.mlp != "none" or block.mlp == "optional", "model.mlp",
        f"{named} is made around its MLP; without one, take {', '.join(optional)}")
  check(model.dyt_alpha_attention == model.dyt_alpha or block.attention_norm,
        "model.dyt_alpha_attention", f"no norm of {named} is attention's alone; "
        "leave it equal to model.dyt_alpha")
  check(block.beta != "residual_scale" or model.beta != 0 or model.beta_trainable,
        "model.residual_scale", "a fixed gain of 0 leaves the model without branches; "
        "set model.beta_trainable=true")
  if block.normed_nonlinearities:
    for path, value in (("model.qk_norm", model.qk_norm), ("model.mlp_norm", model.mlp_norm)):
      check(value != "none", path, f"{named} has a norm before every nonlinearity")
    check(model.attention_gate == "none", "model.attention_gate",
          f"no norm stands before the gate's sigmoid, and {named} has one before every "
          "nonlinearity")


def _nearest_divisor(number: int, near: int) -> int:
  small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
  return min(sorted({*small, *(number // n for n in small)}), key=lambda n: abs(n - near))
