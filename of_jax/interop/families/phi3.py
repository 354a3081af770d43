"""Phi-3 and Phi-4-mini."""

import numpy as np

from of_jax.interop.families import Tree
from of_jax.interop.families.llama import Llama
from of_jax.interop.rope import Spelling, window_fields
from of_jax.interop.tensors import Tensors


class Phi3(Llama):
  """LLaMA with fused maps, a share of a head that turns, and perhaps a window in all blocks."""

  rope = Spelling(turns_whole_heads=False, longest=4096, original_length=4096,
                  aliases={"su": "longrope", "yarn": "longrope"})

  def biases(self) -> tuple[bool, bool, bool]:
    return False, False, False

  def model_fields(self, tensors: Tensors) -> Tree:
    window = self.settings.get("sliding_window", None)
    kind = "full_attention" if window is None else "sliding_attention"
    fields = super().model_fields(tensors)
    self.settings.require(fields.get("rope_scaling") in (None, "longrope"), "rope_scaling",
                          "Phi-3 has longrope alone")
    return {**fields, "norm_eps": self.settings.number("rms_norm_eps", 1e-5),
            **window_fields(self.settings, [kind] * self.depth, window, says_kinds=False)}

  def queries_keys_values(self, tensors: Tensors, at: str) -> Tree:
    heads = self.heads, self.kv_heads, self.kv_heads
    fused = self.linear(tensors, f"{at}.qkv_proj", (self.width,), (sum(heads), self.head_dim),
                        bias=False)["kernel"]
    parts = np.split(fused, np.cumsum(heads[:-1]), axis=1)
    return {name: {"kernel": part} for name, part in zip(("query", "key", "value"), parts)}

  def gate_and_up(self, tensors: Tensors, at: str) -> Tree:
    fused = self.linear(tensors, f"{at}.gate_up_proj", (self.width,), (2, self.hidden),
                        bias=False)["kernel"]
    return {"gate": {"kernel": fused[:, 0]}, "up": {"kernel": fused[:, 1]}}
