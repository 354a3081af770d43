"""GGUF files: the same parameters as from a folder, a tokenizer, and files that lie."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from of_jax.data import special_tokens
from of_jax.data.special_tokens import SpecialTokens
from of_jax.errors import UserError
from of_jax.interop import gguf_file, load, open_source
from of_jax.interop.gguf_tokenizer import build_tokenizer, special_tokens_of
from of_jax.models.rope_scaling import frequency_scale
from tests.golden import foreign, sentencepiece_bpe
from tests.interop.test_foreign import same_parameters

# The names that the format's converters give.
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}


def text(value: str) -> bytes:
  return struct.pack("<Q", len(value.encode())) + value.encode()


def field(key: str, value: Any) -> bytes:
  if isinstance(value, str):
    return text(key) + struct.pack("<I", 8) + text(value)
  if isinstance(value, bool):
    return text(key) + struct.pack("<I?", 7, value)
  if isinstance(value, int):
    return text(key) + struct.pack("<II", 4, value)
  if isinstance(value, float):
    return text(key) + struct.pack("<If", 6, value)
  items = b"".join(map(text, value))
  return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + items


def gguf_bytes(fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
  """A version 3 file of float32 tensors, each at a multiple of 32."""
  head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(fields))
  head += b"".join(field(*item) for item in fields.items())
  data = b""
  for name, array in arrays.items():
    shape = array.shape[::-1]
    head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
    data += array.tobytes() + bytes(-array.nbytes % 32)
  return head + bytes(-len(head) % 32) + data


def converted(form: str, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Metadata and tensors as the format's converters make them of a folder."""
  kind, heads = config["model_type"], config["num_attention_heads"]
  head_dim = config.get("head_dim", config["hidden_size"] // heads)
  fields = {"general.architecture": kind, **{f"{kind}.{key}": value for key, value in {
      "block_count": 3, "context_length": 16, "embedding_length": 32, "feed_forward_length": 48,
      "attention.head_count": heads, "attention.head_count_kv": config["num_key_value_heads"],
      "attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "rope.freq_base": 300.0,
      "attention.key_length": head_dim, "rope.dimension_count": head_dim}.items()}}
  arrays = {}
  for name, array in foreign.weights(form).items():
    if name.endswith(".bias"):
      continue
    for theirs, ours in NAMES.items():
      name = name.replace(theirs, ours)
    if kind == "llama" and (".attn_q." in name or ".attn_k." in name):
      # Neuron i of a head's first half, then of its second: i, i + K / 2, i + 1, ...
      halves = array.reshape(-1, 2, head_dim // 2, array.shape[-1])
      array = np.concatenate([np.stack(pair, 1) for pair in halves]).reshape(array.shape)
    arrays[name.replace("model.layers.", "blk.")] = array
  return fields, arrays


@pytest.mark.parametrize("form", ("llama", "qwen3"))
def test_parameters_are_those_of_the_folder(form: str, tmp_path: Path) -> None:
  config = {**foreign.FORMS[form], "attention_bias": False, "mlp_bias": False,
            "rms_norm_eps": float(np.float32(0.02))}
  folder = foreign.save_folder(tmp_path / "folder", form)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "model.safetensors").write_bytes(foreign.safetensors(
      {name: array for name, array in foreign.weights(form).items() if ".bias" not in name}))
  path = tmp_path / "model.gguf"
  path.write_bytes(gguf_bytes(*converted(form, config)))
  loaded = load(path)
  same_parameters(load(folder), loaded)
  assert "F32" in str(loaded.report) and "its tokenizer (model None" in str(loaded.report)


def test_quantised_types_are_dequantised(tmp_path: Path) -> None:
  """Q8_0: blocks of 32 with a float16 scale in front; worth scale x signed byte."""
  rng = np.random.default_rng(0)
  scales = rng.random(3).astype("<f2")
  integers = rng.integers(-128, 128, (3, 32)).astype(np.int8)
  block = b"".join(s.tobytes() + row.tobytes() for s, row in zip(scales, integers))
  head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("x") + struct.pack(
      "<IQQIQ", 2, 32, 3, 8, 0)
  path = tmp_path / "x.gguf"
  path.write_bytes(head + bytes(-len(head) % 32) + block)
  tensor = gguf_file.read(path)[1]["x"]
  assert tensor.dtype == "Q8_0" and tensor.shape == (3, 32)
  np.testing.assert_array_equal(tensor.load("x"), scales.astype("f4")[:, None] * integers)


HEAD = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize("content, message", (
    (b"", "not a GGUF file"),
    (b"PK\x03\x04" + bytes(40), "does not begin with GGUF"),
    (b"GGUF" + struct.pack(">I", 3) + bytes(16), "GGUF version 50331648"),
    (HEAD, "truncated, or not a GGUF file"),
    (HEAD + struct.pack("<QQ", 2 ** 60, 0), "truncated, or not a GGUF file"),
    (HEAD + struct.pack("<QQ", 0, 2 ** 60), "truncated, or not a GGUF file"),
    (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2 ** 63) + bytes(99), "asks for 9,22"),
    # An array of 2^60 numbers, then of texts, then a nest of arrays.
    (HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 2 ** 60), "asks for"),
    (HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2 ** 60), "asks for"),
    (HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<I", 9)
     + struct.pack("<IQ", 9, 1) * 50, "a value of type 9"),
    (HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<I", 99) + bytes(9), "of type 99"),
    (HEAD + struct.pack("<QQ", 1, 0) + text("x") + struct.pack("<IQIQ", 1, 32, 0, 0),
     "tensor 'x' ends at byte .* truncated"),
    (HEAD + struct.pack("<QQ", 1, 0) + text("x") + struct.pack("<IQIQ", 1, 5, 8, 0),
     "is not whole blocks of 32, as Q8_0 asks"),
    (HEAD + struct.pack("<QQ", 1, 0) + text("x") + struct.pack("<IQIQ", 1, 32, 999, 0),
     "is of type 999, which the gguf package does not know"),
    (gguf_bytes({"general.architecture": "bert"}, {}), "general.architecture=bert: of_jax reads"),
    (gguf_bytes({"general.architecture": "llama"}, {}), "lacks the tensor token_embd.weight"),
), ids=range(16))
def test_a_bad_file_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
  path = tmp_path / "model.gguf"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    load(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_the_metadata_says_is_checked(tmp_path: Path) -> None:
  fields, arrays = converted("llama", foreign.FORMS["llama"])
  path = tmp_path / "model.gguf"
  for change, message in (({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type=yarn"),
                          ({"llama.rope.dimension_count": 4}, "must be the head's 8"),
                          ({"llama.attention.head_count": 0}, "must be a whole number of 1 or mo"),
                          ({"llama.block_count": 2}, "left over after loading: blk.2|layers.2")):
    path.write_bytes(gguf_bytes({**fields, **change}, arrays))
    with pytest.raises(UserError, match=message):
      load(path)
  for divisors in (np.arange(1, 5), np.ones(3), np.zeros(4)):
    path.write_bytes(gguf_bytes(fields, {**arrays, "rope_freqs.weight": divisors.astype("f4")}))
    with pytest.raises(UserError, match="rope_freqs.weight divides rotary frequencies otherwise"):
      load(path)


def test_stretched_rotary_frequencies(tmp_path: Path) -> None:
  """In the metadata where they are linear, and in a tensor of divisors where they are LLaMA 3's."""
  config = {**foreign.FORMS["llama"], "rope_theta": 5e5}
  fields, arrays = converted("llama", config)
  fields |= {"llama.rope.freq_base": 5e5}
  path = tmp_path / "model.gguf"
  for change in ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5},
                 {"llama.rope.scale_linear": 2.5}):
    path.write_bytes(gguf_bytes({**fields, **change}, arrays))
    model = load(path).config.model
    assert (model.rope_scaling, model.rope_factor) == ("linear", 2.5)
  path.write_bytes(gguf_bytes(fields, arrays))
  assert load(path).config.model.rope_scaling == "none"
  # As llama.cpp's converter computes them for Llama 3.2: by wavelengths.
  lengths = 2 * np.pi * 5e5 ** (np.arange(4) / 4)
  share = (8192 / lengths - 1) / (4 - 1)
  divisors = np.where(lengths < 8192 / 4, 1, np.where(
      lengths > 8192, 32, 1 / ((1 - share) / 32 + share)))
  assert len(set(divisors)) == 3
  path.write_bytes(gguf_bytes(fields, {**arrays, "rope_freqs.weight": divisors.astype("f4")}))
  loaded = load(path)
  model = loaded.config.model
  assert (model.rope_scaling, model.rope_factor, model.rope_low_frequency) == ("llama3", 32, 1)
  assert (model.rope_high_frequency, model.rope_original_length) == (4, 8192)
  np.testing.assert_allclose(1 / np.array(frequency_scale(model)), divisors, rtol=1e-6)


def test_the_tokenizer_is_built_from_the_metadata() -> None:
  """Bytes, one merge, a control token, digits apart; a begin token where the file asks for one."""
  letters = [chr(c) for c in range(33, 127)] + ["\u0120"]
  tokens = ["<s>", *letters, "th", "\u0120a", "12"]
  metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
              "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.bos_token_id": 0,
              "tokenizer.ggml.merges": ["t h", "\u0120 a", "1 2"],
              "tokenizer.ggml.token_type": np.array([3] + [1] * (len(tokens) - 1))}
  tokenizer, note = build_tokenizer(metadata, "x")
  assert tokenizer is not None and not note
  assert tokenizer.encode("the a12<s>").tokens == ["th", "e", "\u0120a", "1", "2", "<s>"]
  assert tokenizer.decode(tokenizer.encode("the a12").ids) == "the a12"
  begun, _ = build_tokenizer({**metadata, "tokenizer.ggml.add_bos_token": True,
                              "tokenizer.ggml.pre": "gpt-2"}, "x")
  assert begun is not None and begun.encode("12").tokens == ["<s>", "12"]
  other, note = build_tokenizer({**metadata, "tokenizer.ggml.model": "bert"}, "x")
  assert other is None and "its tokenizer (model bert, pre smollm) is not rebuilt" in note
  with pytest.raises(UserError, match="x: its tokenizer cannot be built"):
    build_tokenizer({**metadata, "tokenizer.ggml.merges": ["no merge"]}, "x")


def test_sentencepiece_s_tokens() -> None:
  """Its own of every recorded text, the begin token in front, and the texts again."""
  golden = json.loads(Path(sentencepiece_bpe.__file__).with_suffix(".json").read_text())
  metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": golden["tokens"],
              "tokenizer.ggml.scores": np.array(golden["scores"], np.float32),
              "tokenizer.ggml.token_type": np.array(golden["types"], np.int32),
              "tokenizer.ggml.bos_token_id": 1}
  tokenizer, note = build_tokenizer(metadata, "x")
  assert tokenizer is not None and not note and len(golden["texts"]) == 32
  for text_, ids in zip(golden["texts"], golden["ids"], strict=True):
    assert tokenizer.encode(text_).ids == [1, *ids], text_
    assert tokenizer.decode(ids) == text_
  bare, _ = build_tokenizer({**metadata, "tokenizer.ggml.add_bos_token": False,
                             "tokenizer.ggml.add_space_prefix": False}, "x")
  assert bare is not None and bare.encode("the").ids != tokenizer.encode("the").ids[1:]
  assert bare.decode(bare.encode(" the").ids) == " the"
  own = metadata["tokenizer.ggml.token_type"].copy()
  own[-1] = 4
  assert build_tokenizer({**metadata, "tokenizer.ggml.token_type": own}, "x") == (
      None, "its tokenizer has tokens of a user's own beside SentencePiece's and is not rebuilt")
  with pytest.raises(UserError, match="x: its tokenizer cannot be built: tokens, scores and"):
    build_tokenizer({**metadata, "tokenizer.ggml.scores": [0.0]}, "x")


def test_a_tokenizer_becomes_a_file(tmp_path: Path) -> None:
  """A folder's own stays where it is; that of a GGUF file goes into the cache, once."""
  from tokenizers import Tokenizer, models
  tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
  path = tmp_path / "model.gguf"
  path.write_bytes(gguf_bytes(*converted("qwen3", foreign.FORMS["qwen3"])))
  source = open_source(path)
  assert source.tokenizer_file(str(tmp_path / "cache")) is None
  source = dataclasses.replace(source, tokenizer=tokenizer)
  written = source.tokenizer_file(str(tmp_path / "cache"))
  assert written is not None and Tokenizer.from_file(str(written)).encode("b").ids == [1]
  assert source.tokenizer_file(str(tmp_path / "cache")) == written
  assert sorted((tmp_path / "cache").rglob("*.*")) == [
      written, written.with_name("tokenizer_config.json")]
  folder = foreign.save_folder(tmp_path / "folder", "qwen3")
  tokenizer.save(str(folder / "tokenizer.json"))
  own = open_source(folder).tokenizer_file(str(tmp_path / "other"))
  assert own == folder / "tokenizer.json" and not (tmp_path / "other").exists()


def test_special_tokens_are_the_metadata_s() -> None:
  """Ids as they stand there; defaults of llama.cpp, by the kind of tokenizer."""
  def found(kind: str, pre: str = "", **fields: Any) -> tuple[int | None, int | None, bool]:
    special = special_tokens_of({
        "tokenizer.ggml.model": kind, "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<unk>", "[S]", "[E]", "</s>"],
        **{f"tokenizer.ggml.{key}": value for key, value in fields.items()}})
    return special.begin, special.end, special.begins

  assert found("llama") == (1, 2, True)
  assert found("llama", bos_token_id=3, eos_token_id=0) == (3, 0, True)
  assert found("llama", add_bos_token=False) == (1, 2, False)
  assert found("gpt2", "llama-bpe", bos_token_id=1) == (1, None, True)
  assert found("gpt2", "llama-bpe", bos_token_id=1, add_bos_token=False) == (1, None, False)
  assert found("gpt2", "smollm", bos_token_id=1, eos_token_id=2) == (1, 2, False)
  assert found("gpt2", "smollm", bos_token_id=3, add_bos_token=True) == (3, None, True)
  assert found("gpt2", "smollm") == (None, None, False)
  assert found("gpt2", "llama-bpe", bos_token_id=9) == (None, None, False)


def test_a_config_and_a_file_say_which_token_begins_a_text(tmp_path: Path) -> None:
  """The tokenizer that is left in the cache keeps its special tokens' odd names."""
  letters = [chr(c) for c in range(97, 105)] + ["\u0120"]
  fields, arrays = converted("qwen3", foreign.FORMS["qwen3"])
  tokens = ["[E]", *letters, "[S]", *(f"[{i}]" for i in range(28)), "ab"]
  fields |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
             "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["a b"],
             "tokenizer.ggml.bos_token_id": 10, "tokenizer.ggml.eos_token_id": 0,
             "tokenizer.ggml.add_bos_token": True}
  path = tmp_path / "model.gguf"
  path.write_bytes(gguf_bytes(fields, arrays))
  model = load(path)
  data = model.config.data
  assert (data.begin_token, data.begin_token_id, data.end_token_id) == (True, 10, 0)
  assert model.encode("ab c").tolist() == [10, 39, 9, 3]
  assert load(path, begin_token="no").encode("ab").tolist() == [39]
  assert "its tokenizer begins a text with [S] (10)" in str(model.report)
  written = open_source(path).tokenizer_file(str(tmp_path / "cache"))
  assert written is not None
  assert special_tokens.of_folder(written.parent) == SpecialTokens(0, 10, True)
  path.write_bytes(gguf_bytes({**fields, "tokenizer.ggml.bos_token_id": 99}, arrays))
  with pytest.raises(UserError, match="add_bos_token without a bos_token_id that is a token"):
    load(path)
  folder = foreign.save_folder(tmp_path / "folder", "llama")
  with pytest.raises(UserError, match="begin_token=yes: no begin token is known of .*folder"):
    load(folder, begin_token="yes")
