"""Configs: overrides, one-line errors, and resolution."""

import dataclasses
from typing import Any

import pytest

from of_jax import config as config_lib
from of_jax.config import Config, apply_overrides, fields, from_dict, presets, resolve, to_dict
from of_jax.errors import UserError


def test_overrides_are_typed() -> None:
  config = apply_overrides(Config(), [
      ("model.width", "1_024"), ("optim.learning_rate", "3e-3"), ("optim.clip_norm", "none"),
      ("model.final_norm", "True"), ("optim.decay_roles", "hidden,embedding"),
      ("model.beta", "0.3"), ("model.beta", "none"), ("train.seed", "7"), ("train.seed", "8")])
  assert (config.model.width, config.optim.learning_rate, config.optim.clip_norm) == (
      1024, 3e-3, None)
  assert config.model.final_norm is True and config.model.beta is None
  assert config.optim.decay_roles == ("hidden", "embedding") and config.train.seed == 8


@pytest.mark.parametrize("path, text, message", (
    ("model.blok", "op", "config.model.blok: no such field; did you mean config.model.block?"),
    ("train.learning_rate", "1", "did you mean config.optim.learning_rate?"),
    ("learning_rate", "1", "did you mean config.optim.learning_rate?"),
    ("modle.width", "64", "did you mean config.model.width?"),
    ("model.layers", "64", "did you mean config.model.depth?"),
    ("lr", "1", "did you mean config.optim.learning_rate?"),
    ("zzz", "64", "config.zzz: no such field; --helpfull lists all fields"),
    ("model.width", "wide", "config.model.width=wide: not a whole number"),
    ("model.width", "1.5", "config.model.width=1.5: not a whole number"),
    ("model.width", "none", "not a whole number"),
    ("optim.eps", "small", "config.optim.eps=small: not a number"),
    ("optim.eps", "nan", "not a finite number"),
    ("model.final_norm", "yes", "config.model.final_norm=yes: not true or false"),
    ("optim.clip_norm", "off", "config.optim.clip_norm=off: not a number or none"),
    ("model.block", "opp", "post_released, pre, residual_scaled; did you mean op?"),
    ("model.qk_norm", "lay", "did you mean layer?"),
    ("model.heads", "3", "does not divide model.width=128; nearest that does: 2"),
    ("optim.warmup_steps", "2000", "the warmup is longer than the training, train.steps=1000"),
    ("mesh.data", "5", "cannot be split over the mesh's data x fsdp = 5 devices; nearest that can"
                       ": 30"),
    ("mesh.fsdp", "3", "cannot be split"),
    ("mesh.tensor", "8", "does not divide model.heads=4"),
    ("mesh.fsdp", "-1", "only one mesh axis can be -1"),
    ("train.grad_accumulation", "5", "does not divide train.batch_size=32"),
    ("train.steps", "0", "must be at least 1"),
    ("train.batch_size", "-4", "must be at least 1"),
    ("optim.b2", "1", "must be at least 0 and below 1"),
    ("model.dropout", "1.0", "below 1"),
    ("model.attention_cap", "0", "must be above 0"),
    ("optim.decay_roles", "hiden", "hiden is not a parameter role"),
    ("optim.decay_roles", "running", "running is not a parameter role"),
    ("model.norm", "dty", "did you mean dyt?"),
    ("model.dyt_alpha", "0.8", "part of model.norm=dyt and does nothing in rms"),
    ("model.dyt_alpha_attention", "0", "must be above 0"),
    ("model.power_warmup_steps", "5", "part of model.norm=power and does nothing in rms"),
    ("model.power_decay", "1", "must be at least 0 and below 1"),
    ("model.head_dim", "0", "must be at least 1"),
    ("data.corpus", "wikipedia", "not python_stdlib, pypi_code, text:PATH"),
    ("data.vocab_size", "200", "at least 258"),
    ("data.vocab_size", "1000000007", "a BPE that is trained here may have at most 1,000,000"),
    ("data.end_token_id", "0", "only for data.corpus=tokens:PATH"),
    ("model.mlp_input_scale", "2", "part of model.block=op"),
    ("model.beta_trainable", "true", "there is no gain to train"),
    ("model.kv_heads", "3", "does not divide model.heads=4; nearest that does: 2"),
    ("model.kv_heads", "0", "must be at least 1"),
    ("model.mix_alpha", "0.5", "is part of model.block=mix and does nothing in pre"),
    ("model.residual_scale", "zero", "is part of model.block=residual_scaled"),
    ("model.norm_gate_rank", "8", "is part of model.block=gated_norm"),
    ("model.leaky_relu_slope", "0.2", "is part of model.mlp=leaky_relu and does nothing in relu"),
    ("model.softmax_gamma", "-0.1", "is part of model.attention_softmax=clipped"),
    ("model.attention_gate_init", "0.5", "is part of model.attention_gate=head"),
    ("model.attention_gate", "heads", "not one of element, head, none; did you mean head?"),
    ("train.checkpoint_log_base", "1", "must be at least 2"),
    ("model.rope_fraction", "0.5", "is part of model.positions=rotary and does nothing in learned"),
    ("model.qk_norm_over", "width", "there is no norm of queries and keys"),
    ("model.attention_window", "0", "must be at least 1"),
    ("model.full_attention_every", "2", "set model.attention_window"),
    ("model.attention_scale", "0", "must be above 0"),
    ("model.logit_cap", "-1", "must be above 0"),
    ("model.skip_gain", "0", "must be above 0"),
    ("model.final_norm_kind", "layer", "does nothing without a norm there"),
    ("model.final_norm_kind", "layr", "did you mean layer?"),
    ("model.embedding_dropout", "1", "must be at least 0 and below 1"),
    ("model.attention_dropout", "-0.1", "must be at least 0 and below 1"),
    ("model.rope_scaling", "linear", "is part of model.positions=rotary and does nothing in lear"),
    ("model.rope_factor", "8", "divides no frequency; set model.rope_scaling=linear or llama3"),
    ("model.rope_low_frequency", "2", "is part of model.rope_scaling=llama3"),
    ("train.tweo_weight", "-1", "must not be negative"),
    ("train.tweo_threshold", "0", "must be above 0"),
    ("train.tweo_threshold", "5", "does nothing without the term; set train.tweo_weight=0.01"),
))
def test_a_mistake_is_one_line(path: str, text: str, message: str) -> None:
  with pytest.raises(UserError) as caught:
    apply_overrides(Config(), [(path, text)])
  assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("first, path, text, message", (
    ("model.block=residual_scaled", "model.residual_scale", "zero",
     "set model.beta_trainable=true"),
    ("model.block=mix", "model.mix_alpha", "1.5", "must lie between 0 and 1"),
    ("model.attention_softmax=clipped", "model.softmax_gamma", "0.1", "must not be above 0"),
    ("model.attention_softmax=clipped", "model.softmax_zeta", "0.9", "must be at least 1"),
    ("model.attention_gate=head", "model.attention_gate_init", "1", "above 0 and below 1"),
    ("model.norm=dyt", "model.norm_eps_placement", "outside", "dyt divides by no root"),
    ("optim.schedule=cosine", "optim.decay_fraction", "0.5", "does nothing in cosine"),
    ("optim.schedule=inverse_sqrt", "optim.final_fraction", "0.1", "does nothing in"),
    ("optim.name=adamw", "optim.scaling", "mup", "config.optim.base_width=none: "),
    ("model.norm=none", "model.norm_eps", "1e-5", "there is no other norm"),
    ("model.mlp=sglu", "model.mlp_norm", "rms", "sglu has no nonlinearity"),
    ("model.block=nap", "model.mlp_norm", "none", "a norm before every nonlinearity"),
    ("model.block=nap", "model.qk_norm", "none", "a norm before every nonlinearity"),
    ("model.block=nap", "model.attention_gate", "element", "the gate's sigmoid"),
    ("model.kv_heads=2", "mesh.tensor", "4", "does not divide model.kv_heads=2"),
    ("model.positions=rotary", "model.rope_fraction", "0.1", "turns 3 of model.head_dim=32"),
    ("model.positions=rotary", "model.rope_fraction", "1.5", "must lie between 0 and 1"),
    ("model.positions=rotary", "model.rope_fraction", "0", "must be above 0"),
    ("model.positions=rotary", "model.rope_factor", "0.5", "divides no frequency"),
    ("train.tweo_weight=0.01", "train.tweo_power", "0.5", "must be at least 1"),
))
def test_what_cannot_go_together_is_one_line(first: str, path: str, text: str, message: str
                                             ) -> None:
  before = tuple(first.split("="))
  apply_overrides(Config(), [before])  # type: ignore[list-item]
  with pytest.raises(UserError) as caught:
    apply_overrides(Config(), [before, (path, text)])  # type: ignore[list-item]
  assert message in str(caught.value) and "\n" not in str(caught.value)


def test_eps_of_another_norm_than_the_blocks() -> None:
  model = apply_overrides(Config(), [("model.norm", "dyt"), ("model.qk_norm", "rms"),
                                     ("model.norm_eps", "1e-5")]).model
  assert model.norm_eps == 1e-5


def test_rotary_needs_an_even_head_dimension() -> None:
  with pytest.raises(UserError, match="even head dimension"):
    apply_overrides(Config(), [("model.width", "12"), ("model.positions", "rotary")])


def test_a_final_norm_of_no_norm_is_refused() -> None:
  with pytest.raises(UserError, match="model.final_norm=True: does nothing with model.norm=none"):
    apply_overrides(Config(), [("model.norm", "none"), ("model.final_norm", "true")])


def test_the_size_of_a_head_follows_the_width_unless_given() -> None:
  assert apply_overrides(Config(), [("model.width", "96")]).model.head_dim == 24
  model = apply_overrides(Config(), [("model.width", "127"), ("model.head_dim", "32")]).model
  assert (model.heads, model.head_dim) == (4, 32)


def test_a_wrong_type_in_a_config_file_is_one_line() -> None:
  wrong: Any = "128"
  config = dataclasses.replace(Config(), model=dataclasses.replace(Config().model, width=wrong))
  with pytest.raises(UserError, match="config.model.width='128': not a whole number"):
    resolve(config)


def test_stretched_frequencies_need_bounds_in_order() -> None:
  settings = [("model.positions", "rotary"), ("model.rope_scaling", "llama3"),
              ("model.rope_factor", "8")]
  assert apply_overrides(Config(), settings).model.rope_original_length == 8192
  for path, text, message in (("low_frequency", "4", "must be below model.rope_high_frequency=4"),
                              ("factor", "0.5", "must be at least 1: it slows what turns")):
    with pytest.raises(UserError, match=message):
      apply_overrides(Config(), [*settings, (f"model.rope_{path}", text)])


def test_json_round_trip() -> None:
  for name in presets.SIZES:
    config = resolve(presets.preset(name))
    assert from_dict(to_dict(config)) == config == resolve(config)
  with pytest.raises(UserError, match="no such field"):
    from_dict({"model": {"blok": "op"}})


def test_resolved_configs_hold_no_auto() -> None:
  config = apply_overrides(Config(), [("model.block", "op"), ("model.mlp", "swiglu"),
                                      ("model.mlp_input_scale", "none")])
  model = config.model
  assert model.qk_norm == "rms" and model.beta == pytest.approx(12 ** -0.5)
  assert model.mlp_width == 344
  assert model.mlp_input_scale == pytest.approx(1 / (0.02 * 128 ** 0.5))
  assert config.optim.warmup_steps == 50
  plain = apply_overrides(Config(), []).model
  assert (plain.qk_norm, plain.mlp_norm, plain.kv_heads) == ("none", "none", 4)
  assert plain.softmax_gamma is None and plain.beta is None
  nap = apply_overrides(Config(), [("model.block", "nap")]).model
  assert (nap.qk_norm, nap.mlp_norm) == ("rms", "rms")
  clipped = apply_overrides(Config(), [("model.attention_softmax", "clipped"),
                                       ("train.sequence_length", "512")]).model
  assert clipped.softmax_gamma == -12 / 512  # Bondarenko et al. 2023: alpha = 12 at T = 512.
  for name, beta in (("inverse_depth", 1 / 6), ("inverse_sqrt_depth", 6 ** -0.5), ("zero", 0)):
    scaled = apply_overrides(Config(), [
        ("model.block", "residual_scaled"), ("model.residual_scale", name),
        ("model.beta_trainable", "true")]).model
    assert scaled.beta == scaled.beta_attention == scaled.beta_mlp == pytest.approx(beta)


def test_the_papers_setup() -> None:
  """Spec 1.5 a: every number of He et al. 2024, App. D, "CodeParrot"."""
  c = resolve(presets.preset("130m"))
  assert (c.model.width, c.model.depth, c.model.mlp, c.model.mlp_width) == (768, 6, "relu", 3072)
  assert not c.model.tied_embeddings and not c.model.final_norm
  assert (c.model.positions, c.model.embedding_scale, c.model.init_std) == ("learned", 50, 0.02)
  assert (c.train.steps, c.train.batch_size, c.train.sequence_length) == (80_000, 32, 128)
  assert (c.optim.b1, c.optim.b2, c.optim.eps, c.optim.weight_decay, c.optim.clip_norm) == (
      0.9, 0.999, 1e-8, 0.1, 1.0)
  assert (c.optim.learning_rate, c.optim.schedule, c.optim.warmup_steps) == (1e-3, "linear", 4000)


def test_the_papers_two_setups_differ_in_stated_fields_alone() -> None:
  """Spec 1.5 a: the text's setup and the released code's."""
  text, code = (resolve(presets.preset(name)) for name in ("130m", "released"))
  assert config_lib.differences(text, code) == {
      "model.depth": (6, 12),
      "model.norm": ("layer", "rms"),
      "model.norm_eps_placement": ("inside", "outside_rms"),
      "model.embedding_scale": (50, 1),
      "model.position_init_std": (0.01, 0.02),
      "model.tied_embeddings": (False, True),
      "model.final_norm": (False, True),
      "model.qk_bias": (False, True),
      "train.steps": (80_000, 40_000),
      "train.batch_size": (32, 128),
      "train.grad_accumulation": (1, 4),
      "optim.warmup_steps": (4_000, 2_000),  # 5 % of the steps.
  }


@pytest.mark.parametrize("form, expected", (
    ("op", {"model.block": "op", "model.beta": 0.2, "model.beta_attention": 0.2,
            "model.beta_mlp": 0.2, "model.qk_norm": "rms", "model.first_attention_norm": True}),
    ("tanh", {"model.block": "op", "model.beta": 0.2, "model.beta_attention": 0.2,
              "model.beta_mlp": 0.2, "model.first_attention_norm": True,
              "model.attention_cap": 30}),
    ("qk_norm", {"model.qk_norm": "rms"}),
    ("post", {"model.block": "post_released"}),
    ("parallel", {"model.block": "parallel"}),
))
def test_the_released_codes_forms(form: str, expected: dict[str, Any]) -> None:
  plain, other = (resolve(presets.preset(name)) for name in ("released", f"released_{form}"))
  changes = config_lib.differences(plain, other)
  assert {path: after for path, (_, after) in changes.items()} == expected


def test_every_field_is_described() -> None:
  help_text = config_lib.field_help()
  assert all(f"--config.{path}=" in help_text and field.metadata["doc"]
             for path, field in fields().items())
