"""Qwen3."""

from of_jax.interop.families import Tree
from of_jax.interop.families.llama import Llama
from of_jax.interop.rope import Spelling, windows_above
from of_jax.interop.tensors import Tensors


class Qwen3(Llama):
  """LLaMA with queries and keys normed over the head."""

  head_dim_default = 128
  kv_heads_default = 32
  rope = Spelling(longest=32768)

  def biases(self) -> tuple[bool, bool, bool]:
    attention = self.settings.flag("attention_bias", False)
    return attention, attention, False

  def model_fields(self, tensors: Tensors) -> Tree:
    return {**super().model_fields(tensors), "qk_norm": "rms",
            **windows_above(self.settings, self.depth)}

  def block(self, tensors: Tensors, layer: int) -> Tree:
    tree = super().block(tensors, layer)
    for ours, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
      tree["attention"][ours] = self.norm(tensors, f"layers.{layer}.self_attn.{theirs}",
                                          self.head_dim)
    return tree
