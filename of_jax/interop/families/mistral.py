"""Mistral."""

from of_jax.interop.families import Tree
from of_jax.interop.families.llama import Llama
from of_jax.interop.rope import Spelling, window_fields
from of_jax.interop.tensors import Tensors


class Mistral(Llama):
  """LLaMA whose tokens see a window of the last ones, in all blocks."""

  kv_heads_default = 8
  rope = Spelling(longest=4096 * 32)

  def biases(self) -> tuple[bool, bool, bool]:
    return False, False, False

  def model_fields(self, tensors: Tensors) -> Tree:
    window = self.settings.get("sliding_window", 4096)
    kind = "full_attention" if window is None else "sliding_attention"
    return {**super().model_fields(tensors),
            **window_fields(self.settings, [kind] * self.depth, window, says_kinds=False)}
