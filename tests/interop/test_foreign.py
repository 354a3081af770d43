"""Foreign models against PyTorch: tests/golden/foreign.py has made the numbers."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.config import presets, resolve
from of_jax.errors import UserError
from of_jax.interop import load
from of_jax.interop.pretrained import Pretrained
from of_jax.models.functional import named_leaves
from tests.golden import foreign

GOLDEN = np.load(Path(foreign.__file__).with_suffix(".npz"))
METRICS = ("kurtosis", "kurtosis_no_first", "rms", "max_abs")


def run(model: Pretrained) -> tuple[np.ndarray, np.ndarray]:
  """Logits, and [layers + 1, metrics] of the stream."""

  def observe(site: str, x: jax.Array, first: jax.Array) -> dict[str, jax.Array] | None:
    return {"x": x} if site in ("resid_pre", "final") else None

  @jax.jit
  def apply(params: Any) -> Any:
    return model.model.apply(params, jnp.asarray(foreign.TOKENS), observe=observe)

  logits, sites = apply(model.params)
  stream = [*sites["resid_pre"]["x"], *sites["final"]["x"]]
  return np.asarray(logits), np.stack([foreign.stream_metrics(np.asarray(x)) for x in stream])


@pytest.mark.parametrize("form", foreign.FORMS)
def test_logits_and_stream_are_pytorchs(form: str, tmp_path: Path) -> None:
  model = load(foreign.save_folder(tmp_path, form))
  logits, stream = run(model)
  np.testing.assert_allclose(logits, GOLDEN[f"{form}/logits"], rtol=0, atol=2e-4)
  wanted = GOLDEN[f"{form}/stream"]
  if form == "opt_350m":
    # Its unembedding reads what a narrowing matrix, folded here into the unembedding, has left.
    stream, wanted = stream[:-1], wanted[:-1]
  np.testing.assert_allclose(stream, wanted, rtol=1e-4, err_msg=str(METRICS))

  report = model.report
  names = [tensor.name for tensor in report.used] + [t.name for t, _ in report.ignored]
  assert sorted(names) == sorted(foreign.shapes(form)) and not report.unread
  leaves = {path: leaf for path, leaf in named_leaves(model.params).items()
            if path not in report.zeros}
  assert report.parameters == sum(leaf.size for leaf in leaves.values())
  assert all(leaf.dtype == np.float32 for leaf in leaves.values())


def saved(folder: Path, form: str, change: dict[str, Any] | None = None,
          tensors: dict[str, np.ndarray] | None = None) -> Path:
  """The form's folder with other fields, or with tensors replaced."""
  foreign.save_folder(folder, form)
  config = {**foreign.FORMS[form], **(change or {})}
  (folder / "config.json").write_text(json.dumps(config))
  if tensors is not None:
    (folder / "model.safetensors").write_bytes(
        foreign.safetensors({**foreign.weights(form), **tensors}))
  return folder


def same_parameters(a: Pretrained, b: Pretrained) -> None:
  assert a.config == b.config
  assert named_leaves(a.params).keys() == named_leaves(b.params).keys()
  for name, leaf in named_leaves(a.params).items():
    np.testing.assert_array_equal(leaf, named_leaves(b.params)[name], err_msg=name)


def test_logits_of_the_object_are_the_models(tmp_path: Path) -> None:
  model = load(foreign.save_folder(tmp_path, "gpt2"))
  np.testing.assert_allclose(model.logits(foreign.TOKENS), GOLDEN["gpt2/logits"], atol=2e-4)
  for tokens, message in (([[40]], "tokens from 40 to 40: must be at least 0 and below"),
                          ([[-1]], "tokens from -1 to -1"), ([1, 2], r"tokens of shape \(2,\)"),
                          ([[0] * 13], "sequences of 13 tokens: the model has positions for 12")):
    with pytest.raises(UserError, match=message):
      model.logits(tokens)
  text = str(model.report)
  assert "gpt2 in safetensors, 22,968 parameters" in text and "0 left over" in text
  assert "F32" in model.report.table() and "wpe.weight" in model.report.table()


def test_a_gain_that_all_blocks_share_is_a_fixed_field(tmp_path: Path) -> None:
  """The same function, with the fields that the released presets have."""
  ours = load(saved(tmp_path, "of_op", tensors={
      f"transformer.h.{i}.{name}": np.full(1, value, np.float32) for i in range(3)
      for name, value in (("attn_block_resid_gain", 0.2), ("mlp_block_resid_gain", 0.2),
                          ("attn_block_skip_gain", 1), ("mlp_block_skip_gain", 1))}))
  model = ours.config.model
  assert not model.beta_trainable and model.skip_gain is None and model.final_norm_kind == "layer"
  assert model.beta_attention == model.beta_mlp == pytest.approx(0.2) and model.first_attention_norm
  assert "attention_gain" not in ours.params["stacks"]["1"]
  released = resolve(presets.preset("released_op")).model
  for name in ("block", "norm", "norm_eps_placement", "final_norm", "final_norm_kind", "mlp",
               "qk_norm", "qk_bias", "linear_bias", "tied_embeddings", "positions",
               "embedding_scale", "mlp_input_scale", "attention_cap", "attention_scale"):
    assert getattr(model, name) == getattr(released, name), name
  trained = load(saved(tmp_path, "of_op", {"trainable_mlp_block_gains": True}))
  assert trained.config.model.beta_trainable
  np.testing.assert_allclose(
      trained.params["stacks"]["1"]["mlp_skip"]["value"],
      [foreign.weights("of_op")[f"transformer.h.{i}.mlp_block_skip_gain"][0] for i in (1, 2)])


def test_biases_that_are_zero_may_be_left_out_and_others_are_kept(tmp_path: Path) -> None:
  whole = load(foreign.save_folder(tmp_path / "whole", "of_op"))
  assert not whole.config.model.linear_bias
  arrays = foreign.weights("of_op")
  short = foreign.save_folder(tmp_path / "short", "of_op")
  (short / "model.safetensors").write_bytes(foreign.safetensors(
      {name: a for name, a in arrays.items() if not name.endswith(("attn.bias", "proj.bias",
                                                                   "c_fc.bias"))
       or "qk_attn" in name}))
  same_parameters(whole, load(short))
  name = "transformer.h.1.mlp.c_fc.bias"
  kept = load(saved(tmp_path / "kept", "of_op", tensors={name: np.ones(48, np.float32)}))
  assert kept.config.model.linear_bias
  np.testing.assert_array_equal(kept.params["stacks"]["1"]["mlp"]["up"]["bias"],
                                np.stack([np.ones(48), np.zeros(48)]))


def test_shards_half_types_and_names_without_prefix(tmp_path: Path) -> None:
  """The same parameters from two shards, and the nearest ones from half precision."""
  whole = load(foreign.save_folder(tmp_path / "whole", "gpt2"))
  arrays = foreign.weights("gpt2")
  bare = {name.removeprefix("transformer."): array for name, array in arrays.items()}
  shards = {"a.safetensors": dict(list(bare.items())[:9]),
            "b.safetensors": {**dict(list(bare.items())[9:]), "lm_head.weight": bare["wte.weight"],
                              "h.0.attn.bias": np.ones((1, 1, 12, 12), np.float32)}}
  folder = foreign.save_folder(tmp_path / "sharded", "gpt2")
  (folder / "model.safetensors").unlink()
  for name, part in shards.items():
    (folder / name).write_bytes(foreign.safetensors(part))
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps(
      {"weight_map": {name: file for file, part in shards.items() for name in part}}))
  sharded = load(folder)
  same_parameters(whole, sharded)
  assert [t.name for t, _ in sharded.report.ignored] == ["lm_head.weight", "h.0.attn.bias"]

  for dtype, digits in (("F16", 2 ** -11), ("BF16", 2 ** -7)):
    half = load(foreign.save_folder(tmp_path / dtype, "gpt2", dtype))
    for name, leaf in named_leaves(half.params).items():
      exact = np.asarray(named_leaves(whole.params)[name])
      assert np.all(np.abs(leaf - exact) <= digits * np.abs(exact) + 1e-7), name
    assert f"type {dtype} {len(arrays)}" in str(half.report)


def test_rotary_settings_in_both_spellings(tmp_path: Path) -> None:
  old = load(foreign.save_folder(tmp_path / "old", "gpt_neox"))
  new = {k: v for k, v in foreign.FORMS["gpt_neox"].items() if not k.startswith("rotary")}
  folder = foreign.save_folder(tmp_path / "new", "gpt_neox")
  (folder / "config.json").write_text(json.dumps({**new, "rope_parameters": {
      "rope_type": "default", "rope_theta": 300, "partial_rotary_factor": 0.5}}))
  assert load(folder).config == old.config
  assert (old.config.model.rope_theta, old.config.model.rope_fraction) == (300, 0.5)


@pytest.mark.parametrize("form, change, message", (
    ("gpt2", {"model_type": "bert"}, "model_type=bert: is not one that of_jax has; those are gem"),
    ("gpt2", {"n_embd": "24"}, "n_embd=24: must be a whole number"),
    ("gpt2", {"n_embd": 28}, r"transformer.wte.weight has the shape \(40, 24\).* \(40, 28\)"),
    ("gpt2", {"n_layer": 2}, "left over after loading: transformer.h.2"),
    ("gpt2", {"n_layer": 4}, "lacks the tensor h.3"),
    ("gpt2", {"n_head": 5}, "5 heads do not divide the width 24"),
    ("gpt2", {"activation_function": "mish"}, "activation_function=mish: is not one"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config=.*stored quantised"),
    ("llama", {"rope_scaling": {"rope_type": "ntk", "factor": 8}}, "rope_type=ntk: is not one"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks the field low_freq"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_factor=0.5: must be at l"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {
        "rope_type": "linear", "factor": 4}}, "rope_scaling=.*: is not what rope_parameters says"),
    ("llama", {"num_key_value_heads": 4}, r"k_proj.weight has the shape \(16, 32\)"),
    ("llama", {"num_key_value_heads": 3}, "cannot be expressed: config.model.kv_heads=3: does not"),
    ("llama", {"num_hidden_layers": 2 ** 30}, "num_hidden_layers=1073741824: must be a whole"),
    ("llama", {"tie_word_embeddings": True}, "lm_head.weight differs from the token embedding"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
     "max_window_layers=1: the first 1 of 3 blocks have full attention; of_jax can give full"),
    ("qwen2", {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
     "layer_types=.*: of_jax can give full attention to every n-th block alone"),
    ("gemma2", {"sliding_window": 0}, "sliding_window=0: must be a whole number"),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
    ("of_op", {"format": "other"}, "format=other: is not one"),
    ("of_op", {"centre_attn": True}, "centre_attn=True: shaped attention"),
    ("of_op", {"value_skip_gain": 1}, "value_skip_gain=1: identity values"),
    ("of_op", {"proj_skip_gain": 0.5}, "proj_skip_gain=0.5: identity values"),
    ("of_op", {"attn_block_skip_gain": 0}, "attn_block_skip_gain=0: a skipless block"),
    ("of_op", {"parallel_layers": True}, "norm_type=none: parallel layers without norms"),
    ("of_op", {"norm_position": "post"}, "norm_type=none: a stream normed in block 0 alone"),
    ("of_parallel", {"norm_position": "post"}, "norm_position=post: parallel layers behind"),
    ("of_op", {"norm_type": "bn"}, "norm_type=bn: is not one that of_jax has; those are ln, rmsn"),
), ids=str)
def test_what_cannot_be_loaded_is_one_line(form: str, change: dict[str, Any], message: str,
                                           tmp_path: Path) -> None:
  with pytest.raises(UserError, match=message) as error:
    load(saved(tmp_path, form, change))
  assert "\n" not in str(error.value)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
  bias = np.full(24, np.nan, np.float32)
  with pytest.raises(UserError, match="ln_f.bias holds NaN"):
    load(saved(tmp_path, "gpt2", tensors={"transformer.ln_f.bias": bias}))


def test_a_tokenizer_comes_along_and_cuts_nothing(tmp_path: Path) -> None:
  from tokenizers import Tokenizer, models, pre_tokenizers
  tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.enable_truncation(2)
  folder = foreign.save_folder(tmp_path, "gpt2")
  assert load(folder).tokenizer is None
  tokenizer.save(str(folder / "tokenizer.json"))
  loaded = load(folder).tokenizer
  assert loaded is not None and loaded.encode("a b a b").ids == [0, 1, 0, 1]
  (folder / "tokenizer.json").write_text("{}")
  with pytest.raises(UserError, match="tokenizer.json: not a tokenizer.json of the tokenizers"):
    load(folder)


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
  for path, message in ((tmp_path / "none", "no such file or folder"),
                        (tmp_path, "has no config.json")):
    with pytest.raises(UserError, match=re.escape(str(path)) + f": {message}"):
      load(path)
  (tmp_path / "model.safetensors").write_bytes(b"")
  with pytest.raises(UserError, match="neither a folder with config.json"):
    load(tmp_path / "model.safetensors")
