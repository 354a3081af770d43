"""Rotary settings: where they may stand, what is said of those that do nothing, what is refused.

That a model with them computes what transformers does is tested by the forms of test_foreign.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from of_jax.config import ModelConfig
from of_jax.errors import UserError
from of_jax.interop import open_source
from tests.golden import foreign

_STRETCHED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4}


def opened(folder: Path, form: str, change: dict[str, Any]) -> tuple[ModelConfig, list[str]]:
  """The model's fields and notes under another config; keys of None are left out."""
  config = {name: value for name, value in {**foreign.FORMS[form], **change}.items()
            if value is not None}
  foreign.save_folder(folder, form)
  (folder / "config.json").write_text(json.dumps(config))
  source = open_source(folder)
  return source.config().model, source.family.settings.notes


@pytest.mark.parametrize("form", ("llama_attention_bias", "qwen3", "gemma2", "olmo2", "mistral",
                                  "qwen2", "phi3", "olmo", "gemma", "gpt_neox"))
@pytest.mark.parametrize("name", ("rope_scaling", "rope_parameters"))
def test_the_base_of_an_object_counts_before_that_beside_it(form: str, name: str, tmp_path: Path
                                                            ) -> None:
  beside = "rotary_emb_base" if form == "gpt_neox" else "rope_theta"
  change = {"rope_scaling": None, "rope_parameters": None, beside: 77.0,
            name: {"rope_theta": 555.0}}
  model, notes = opened(tmp_path, form, change)
  assert model.rope_theta == 555 and model.rope_scaling == "none"
  assert notes == [f"{beside}=77.0 is not used: as in transformers, rope_theta=555.0 of {name} "
                   "counts"]
  model, notes = opened(tmp_path, form, {**change, name: None})
  assert model.rope_theta == 77 and not notes


@pytest.mark.parametrize("form", ("llama", "gemma2", "qwen3", "mistral"))
@pytest.mark.parametrize("name", ("rope_scaling", "rope_parameters"))
def test_objects_by_kind_of_block_are_refused(form: str, name: str, tmp_path: Path) -> None:
  """Keys that no model class of these families reads in transformers 5.24 are ignored."""
  for beside in ({}, {"layer_types": ["full_attention"] * 3}):
    for nested in ({"rope_theta": 55.0}, None):
      change = {"rope_scaling": None, "rope_parameters": None, "rope_theta": 1000.0,
                name: {"full_attention": nested}, **beside}
      with pytest.raises(UserError, match=f"{name}: full_attention=.*: transformers reads no set"):
        opened(tmp_path, form, change)


@pytest.mark.parametrize("form", ("llama_attention_bias", "olmo2", "qwen3"))
def test_a_share_of_a_head_in_a_model_that_turns_heads_whole(form: str, tmp_path: Path) -> None:
  objects = {"rope_parameters": None, "rope_theta": 300.0}
  for change in ({"partial_rotary_factor": 0.5}, {"rope_scaling": {"partial_rotary_factor": 0.5}}):
    model, notes = opened(tmp_path, form, {**objects, **change})
    assert model.rope_fraction == 1
    assert notes == ["partial_rotary_factor=0.5 is not used: transformers turns whole heads in a "
                     "model of this kind (vLLM turns a part of them)"]
  linear = {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}
  with pytest.raises(UserError, match="rope_type=linear: transformers cannot stretch"):
    opened(tmp_path, form, {**objects, **linear})


def test_settings_of_other_kinds_are_named(tmp_path: Path) -> None:
  linear = {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5, "finetuned": True}
  model, notes = opened(tmp_path, "mistral", {"rope_scaling": linear})
  assert (model.rope_factor, model.rope_gain) == (2, 1)
  assert notes == ["attention_factor of rope_scaling is not used: as in transformers, it does "
                   "nothing with rope_type=linear"]


def test_what_yarn_makes_of_its_settings(tmp_path: Path) -> None:
  for change, name, value in (
      ({}, "rope_gain", 1.138629436), ({"attention_factor": 1.5}, "rope_gain", 1.5),
      ({"mscale": 0.5, "mscale_all_dim": 1.0}, "rope_gain", 1.069314718 / 1.138629436),
      ({"mscale": 0.5}, "rope_gain", 1.138629436), ({"factor": None}, "rope_factor", 4.0),
      ({"beta_fast": 8}, "rope_fast_turns", 8), ({"beta_slow": 0}, "rope_slow_turns", 1),
      ({"truncate": False}, "rope_whole_pairs", False)):
    model, _ = opened(tmp_path, "mistral", {"rope_scaling": {**_STRETCHED, **change}})
    assert getattr(model, name) == pytest.approx(value, rel=1e-8), change
  model, _ = opened(tmp_path, "mistral", {
      "rope_scaling": _STRETCHED, "original_max_position_embeddings": 8})
  assert model.rope_original_length == 8  # The config's own word goes first.


@pytest.mark.parametrize("form, change, message", (
    ("mistral", {"rope_scaling": {**_STRETCHED, "alpha": 2}}, "rope_scaling: alpha=2: of_jax does"),
    ("mistral", {"rope_scaling": {**_STRETCHED, "factor": "4"}}, "factor=4: must be a number"),
    ("mistral", {"rope_parameters": {"rope_theta": None}}, "rope_theta=None: must be a number"),
    ("mistral", {"rope_scaling": [1]}, "must be an object"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types=.*: in transformers all bl"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "Phi-3 has longrope alone"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
     "short_factor=.*: must be 3 numbers above 0"),
    ("qwen2", {"max_window_layers": -1}, "max_window_layers=-1: must be a whole number of 0 or"),
    ("olmo", {"clip_qkv": "8"}, "clip_qkv=8: must be a number"),
    ("olmo", {"clip_qkv": -8.0}, "attention_clip=-8"),
    ("gemma", {"hidden_act": "quick_gelu"}, "hidden_act=quick_gelu: is not one"),
    ("qwen3", {"use_sliding_window": False, "sliding_window": 8, "layer_types": [
        "sliding_attention", "full_attention", "full_attention"]},
     "there are no windows with use_sliding_window=false; set it to true"),
    ("qwen3", {"per_layer_config": {"1": {}}}, "per_layer_config=.*: of_jax gives all blocks"),
), ids=str)
def test_what_cannot_be_read_is_one_line(form: str, change: dict[str, Any], message: str,
                                         tmp_path: Path) -> None:
  with pytest.raises(UserError, match=message) as error:
    opened(tmp_path, form, change)
  assert "\n" not in str(error.value)


def test_lengths_that_the_library_knows(tmp_path: Path) -> None:
  for form, length in (("llama", 2048), ("mistral", 131072), ("qwen2", 32768), ("gemma", 8192)):
    foreign.save_folder(tmp_path, form)
    config = {name: value for name, value in foreign.FORMS[form].items()
              if name != "max_position_embeddings"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_source(tmp_path).config().train.sequence_length == length
