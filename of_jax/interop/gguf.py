"""GGUF files: a LLaMA or Qwen3 model with its tokenizer, in the types that `gguf` dequantises."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.errors import UserError
from of_jax.interop import gguf_file, gguf_metadata
from of_jax.interop.families.llama import Llama
from of_jax.interop.families.qwen3 import Qwen3
from of_jax.interop.gguf_tokenizer import build_tokenizer, special_tokens_of
from of_jax.interop.settings import Settings
from of_jax.interop.source import Source
from of_jax.interop.tensors import Stored, Tensors
from of_jax.models.rope_scaling import llama3_scale

_FAMILIES = {"llama": Llama, "qwen3": Qwen3}
# Our families' names of fields -> those of GGUF, behind the architecture's name.
_FIELDS = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count",
           "intermediate_size": "feed_forward_length",
           "num_attention_heads": "attention.head_count",
           "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
           "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
           "max_position_embeddings": "context_length"}
_TENSORS = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj"}


# What rotary frequencies are divided by, and the numbers of LLaMA 3.1 to 3.3 behind it; their
# factors, 8 and 32, are the largest entries.
_DIVISORS = "rope_freqs.weight"
_LLAMA3: dict[str, Any] = {"low": 1.0, "high": 4.0, "length": 8192}


@dataclasses.dataclass(frozen=True)
class _Interleaved:
  """Rows of queries or keys in the order that ggml's rotary pairs have.

  It turns neurons 2i and 2i + 1 of a head together, we and Hugging Face i and i + K / 2: stored
  row (head, i, side) is our row (head, side, i).
  """

  stored: Stored
  heads: int

  @property
  def dtype(self) -> str:
    return self.stored.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.stored.shape

  def load(self, name: str) -> np.ndarray:
    rows = self.stored.load(name)
    pairs = rows.reshape(self.heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def open_gguf(path: Path) -> Source:
  """Opens the model of a .gguf file.

  Raises:
    UserError: an architecture, a type or a field that cannot be read as it should.
  """
  read, found = gguf_file.read(path)
  metadata = gguf_metadata.Metadata(read, path)
  architecture = metadata.get("general.architecture")
  if architecture not in _FAMILIES:
    raise UserError(f"{path}: general.architecture={str(architecture)[:40]}: of_jax reads "
                    f"{' and '.join(_FAMILIES)} from GGUF")
  settings = Settings(_config(path, metadata, architecture, found), str(path))
  family = _FAMILIES[architecture](settings)
  stored: dict[str, Stored] = {_renamed(name): tensor for name, tensor in found.items()}
  stored.pop(_DIVISORS, None)  # Read into the config.
  if architecture == "llama":
    for name, tensor in stored.items():
      heads = {"q": family.heads, "k": family.kv_heads}.get(name.removesuffix("_proj.weight")[-1:])
      if name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
        assert heads is not None
        if not tensor.shape[0] or tensor.shape[0] % (2 * heads):
          raise UserError(f"{path}: {tensor.shape[0]} rows of {name} are not {heads} heads of "
                          "pairs")
        stored[name] = _Interleaved(tensor, heads)
  tokenizer, note = build_tokenizer(metadata, str(path))
  special = special_tokens_of(metadata)
  return Source(family, Tensors(path, stored), str(path), f"{architecture} in GGUF", tokenizer,
                (note,) if note else (), special, gguf_metadata.unread(metadata))


def _config(path: Path, metadata: gguf_metadata.Metadata, architecture: str,
            found: dict[str, gguf_file.GGUFTensor]) -> dict[str, Any]:
  """Translates the metadata into the fields of the family's own config."""
  fields = {ours: metadata[f"{architecture}.{theirs}"] for ours, theirs in _FIELDS.items()
            if f"{architecture}.{theirs}" in metadata}
  kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
  if kind not in ("none", "linear"):
    raise UserError(f"{path}: {architecture}.rope.scaling.type={str(kind)[:40]}: of_jax has linear "
                    "and llama3's scaled rotary frequencies alone from GGUF")
  if "token_embd.weight" not in found or len(found["token_embd.weight"].shape) != 2:
    raise UserError(f"{path}: lacks the tensor token_embd.weight, [vocabulary, width]")
  heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
  head_dim = fields.get("head_dim")
  if head_dim is None and type(heads) is int and type(width) is int and heads > 0:
    fields["head_dim"] = head_dim = width // heads
  turned = metadata.get(f"{architecture}.rope.dimension_count", head_dim)
  if turned != head_dim:
    raise UserError(f"{path}: {architecture}.rope.dimension_count={turned}: must be the head's "
                    f"{head_dim}")
  scaling = _rope_scaling(path, metadata, architecture, found, fields)
  gguf_metadata.refuse_what_acts(path, metadata, architecture, {
      "vocab_size": found["token_embd.weight"].shape[0], "embedding_length_out": width,
      "attention.value_length": head_dim, "rope.freq_base_swa": fields.get("rope_theta"),
      "attention.scale": head_dim ** -0.5 if type(head_dim) is int and head_dim > 0 else None})
  if scaling is not None:
    fields["rope_scaling"] = scaling
  return {**fields, "vocab_size": found["token_embd.weight"].shape[0],
          "tie_word_embeddings": "output.weight" not in found}


def _rope_scaling(path: Path, metadata: dict[str, Any], architecture: str,
                  found: dict[str, gguf_file.GGUFTensor], fields: dict[str, Any]
                  ) -> dict[str, Any] | None:
  """Translates `rope_scaling`. llama3's is not in the metadata: its divisors are a tensor."""
  old = metadata.get(f"{architecture}.rope.scale_linear", 1.0)
  factor = metadata.get(f"{architecture}.rope.scaling.factor", old)
  linear = metadata.get(f"{architecture}.rope.scaling.type", "linear") == "linear"
  if _DIVISORS not in found:
    return {"rope_type": "linear", "factor": factor} if linear and factor != 1 else None
  divisors, head_dim = found[_DIVISORS].load(_DIVISORS), fields.get("head_dim")
  theta = fields.get("rope_theta", 10_000.0)
  largest = float(divisors.max(initial=0))
  if (largest >= 1 and type(head_dim) is int and divisors.shape == (head_dim // 2,)
      and type(theta) in (int, float) and theta > 0):
    wanted = 1 / llama3_scale(theta, len(divisors), largest, **_LLAMA3)
    if np.allclose(divisors, wanted, rtol=1e-4, atol=0):
      return {"rope_type": "llama3", "factor": largest, "low_freq_factor": _LLAMA3["low"],
              "high_freq_factor": _LLAMA3["high"],
              "original_max_position_embeddings": _LLAMA3["length"]}
  raise UserError(f"{path}: {_DIVISORS} divides rotary frequencies otherwise than LLaMA 3.1 does")


def _renamed(name: str) -> str:
  """Translates a tensor's name to Hugging Face's; unknown ones stay, and so are left over."""
  parts = name.split(".")
  if len(parts) == 2 and parts[0] in _TENSORS:
    return f"{_TENSORS[parts[0]]}.{parts[1]}"
  if len(parts) == 4 and parts[0] == "blk" and parts[2] in _BLOCK_TENSORS:
    return f"layers.{parts[1]}.{_BLOCK_TENSORS[parts[2]]}.{parts[3]}"
  return name
