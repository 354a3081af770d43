"""Configs that public repositories have: transformers' logits, or a line that says why not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from of_jax.errors import UserError
from of_jax.interop import load
from tests.fidelity.public_configs import REFUSED, TOLERANCE, logit_error
from tests.golden.public_configs import CONFIGS, cut, save_folder, shapes, weights

# One of each family and of each way to set rotary frequencies, windows and biases.
FAST = ("llama_2_70b", "llama_3_2_3b", "llama_3b_linear", "mistral_window", "qwen25_32b_yarn",
        "qwen3_windows", "olmo_1b", "olmo2_32b", "gemma2_27b", "phi_4_mini", "redpajama_3b",
        "gpt2_chinese", "opt_350m")


def test_there_are_forty_and_few_are_refused() -> None:
  assert len(CONFIGS) == 40 and REFUSED.keys() <= CONFIGS.keys() and len(REFUSED) <= 8
  sources = {(e["repository"], e["path"], e.get("key")) for e in CONFIGS.values()}
  assert len(sources) == 40


def test_the_page_says_how_many_load_and_names_the_others() -> None:
  page = (Path(__file__).parents[2] / "docs" / "foreign_models.md").read_text()
  [note] = [part for part in page.split("\n\n") if "public repositories have" in part]
  load_count = len(CONFIGS) - len(REFUSED)
  assert f"{load_count} of {len(CONFIGS)} give the logits" in " ".join(note.split())
  kinds = {CONFIGS[name]["config"]["model_type"] for name in REFUSED}
  named = set(re.findall(r"`(\w+)` \(", note.partition("Refused")[2]))
  assert named == kinds


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name in CONFIGS if name not in REFUSED])
def test_logits_are_those_of_transformers(name: str) -> None:
  assert logit_error(name) <= TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line_that_says_why(name: str, tmp_path: Path) -> None:
  with pytest.raises(UserError, match=REFUSED[name]) as error:
    load(save_folder(tmp_path, name))
  assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_config_is_small_and_keeps_its_settings(name: str) -> None:
  whole = CONFIGS[name]["config"]
  small = cut(whole)
  assert small.keys() == whole.keys() and len(json.dumps(whole)) < 5000
  sizes = {"n_embd", "hidden_size", "n_layer", "num_hidden_layers", "n_head", "num_attention_heads",
           "num_key_value_heads", "head_dim", "intermediate_size", "ffn_dim", "word_embed_proj_dim",
           "vocab_size", "pad_token_id", "sliding_window", "max_window_layers", "layer_types"}
  changed = {key for key in whole if small[key] != whole[key]}
  assert changed <= sizes | ({"rope_scaling"} if name == "phi_4_mini" else set())
  assert small.get("hidden_size", small.get("n_embd")) <= 256
  assert small.get("num_hidden_layers", small.get("n_layer")) <= 4

  def ratio(config: dict[str, Any]) -> float:
    heads = config.get("num_attention_heads", config.get("n_head"))
    return float(heads / config.get("num_key_value_heads", heads))

  assert ratio(small) == ratio(whole)


@pytest.mark.parametrize("name", ("qwen2_05b", "gpt2_chinese"))
def test_every_number_of_the_weights_counts(name: str) -> None:
  drawn = weights(name)
  assert drawn.keys() == shapes(name).keys()
  for tensor, array in drawn.items():
    assert array.std() > 0.03, tensor
