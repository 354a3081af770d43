"""Metadata of a GGUF file that nothing else reads: refused where it acts, or listed."""

import fnmatch
import math
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.errors import UserError

# Of an architecture, behind its name: what says nothing about the logits of the families read here.
_INERT = ("pooling_type", "tensor_data_layout", "decoder_start_token_id", "context_length",
          "rope.scaling.original_context_length", "rope.scaling.finetuned",
          "attention.layer_norm_epsilon")
# What changes the function of some model -> the values with which it does nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_scale": (1,), "embedding_scale": (1,), "residual_scale": (1,),
    "attn_logit_softcapping": (0,), "final_logit_softcapping": (0,),
    "attention.causal": (True,), "attention.max_alibi_bias": (0,), "attention.clamp_kqv": (0,),
    "attention.sliding_window": (0,), "attention.scale": (0,), "attention.output_scale": (1,),
    "attention.shared_kv_layers": (0,), "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (0,), "rope.scaling.yarn_attn_factor": (1,),
    "use_parallel_residual": (False,), "swin_norm": (False,), "rescale_every_n_layers": (0,),
    "expert_count": (0,), "expert_used_count": (0,), "expert_shared_count": (0,),
    "leading_dense_block_count": (0,), "nextn_predict_layers": (0,), "vocab_size": (),
    "embedding_length_out": (), "attention.value_length": (), "rope.freq_base_swa": ()}
# And words of the names of others.
_ACTS = ("attention.*", "rope.*", "*expert*", "moe*", "*_moe_*", "*scale*", "*softcap*", "*clamp*",
         "*window*", "*norm*", "*residual*", "*bias*", "*causal*", "*multiplier*", "*sparsity*",
         "*swiglu*", "*interval*", "ssm.*", "wkv.*", "altup.*", "kda.*", "*deepstack*", "posnet.*",
         "convnext.*", "shortconv.*", "token_shift*", "time_mix*", "time_decay*", "*feat_in",
         "*feat_out", "*activation*", "*length_per_layer*")
_LISTS = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges"))


class Metadata(dict[str, Any]):
  """Fields of a file by key, which remembers those that were asked for."""

  def __init__(self, fields: dict[str, Any], path: Path):
    super().__init__(fields)
    self._path = path
    self.read: set[str] = set()

  def __getitem__(self, key: str) -> Any:
    self.read.add(key)
    return super().__getitem__(key)

  def get(self, key: str, default: Any = None) -> Any:
    """Reads a field that is one value, or one of the lists that a tokenizer is made of."""
    self.read.add(key)
    value = super().get(key, default)
    if key not in _LISTS and isinstance(value, (list, np.ndarray)):
      raise UserError(f"{self._path}: {key} is a list of {len(value):,}, and must be one value")
    if key in _LISTS and key in self and not isinstance(value, (list, np.ndarray)):
      raise UserError(f"{self._path}: {key}={str(value)[:40]}: must be a list")
    return value


def refuse_what_acts(path: Path, metadata: Metadata, architecture: str, own: dict[str, Any]
                     ) -> None:
  """Raises UserError about a field that nothing has read, unless it leaves the function as it is.

  Args:
    own: values with which fields do nothing in this model, beside those of all models.
  """
  if metadata.get("general.type", "model") != "model":
    raise UserError(f"{path}: general.type={metadata['general.type']}: not a whole model")
  if metadata.get("split.count", 1) not in (0, 1):
    raise UserError(f"{path}: split.count={metadata['split.count']}: one of several files of a "
                    "model; join them with llama.cpp's gguf-split --merge")
  window, longest = (metadata.get(f"{architecture}.{name}") for name in (
      "attention.sliding_window", "context_length"))
  if type(window) is int and type(longest) is int and window >= longest:
    own = {**own, "attention.sliding_window": window}
  acting = []
  for key in sorted(metadata.keys()):
    name = key.removeprefix(f"{architecture}.")
    is_known = name in _NEUTRAL or any(fnmatch.fnmatch(name, pattern) for pattern in _ACTS)
    if name == key or name in _INERT or not is_known or key in metadata.read - {
        f"{architecture}.{one}" for one in _NEUTRAL}:
      continue
    value = metadata[key]
    neutral = [one for one in (*_NEUTRAL.get(name, ()), own.get(name)) if one is not None]
    if not any(_same(value, one) for one in neutral):
      write = _truth if isinstance(value, bool) else "{:g}".format
      right = f" (must be {' or '.join(map(write, neutral))})" if neutral else ""
      acting.append(f"{key}={_truth(value) if isinstance(value, bool) else str(value)[:40]}{right}")
  if acting:
    raise UserError(f"{path}: {', '.join(acting)}: changes the function of the model in a way that "
                    "of_jax does not express from GGUF")


def _truth(value: Any) -> str:
  return "true" if value else "false"


def _same(value: Any, other: Any) -> bool:
  """Tells whether two plain numbers are one, to the rounding of float32."""
  return isinstance(value, (bool, int, float)) and math.isclose(value, other, rel_tol=1e-6)


def unread(metadata: Metadata) -> tuple[str, ...]:
  """Names of the fields that nobody has asked for, those of provenance left out."""
  return tuple(sorted(key for key in metadata.keys() - metadata.read
                      if not fnmatch.fnmatch(key, "general.*")))
