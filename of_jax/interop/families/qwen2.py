"""Qwen2 and Qwen2.5."""

from of_jax.interop.families import Tree
from of_jax.interop.families.llama import Llama
from of_jax.interop.rope import Spelling, windows_above
from of_jax.interop.tensors import Tensors


class Qwen2(Llama):
  """LLaMA with offsets on queries, keys and values, and perhaps windows in the upper blocks."""

  kv_heads_default = 32
  rope = Spelling(longest=32768)

  def biases(self) -> tuple[bool, bool, bool]:
    return True, False, False

  def model_fields(self, tensors: Tensors) -> Tree:
    return {**super().model_fields(tensors), **windows_above(self.settings, self.depth)}
