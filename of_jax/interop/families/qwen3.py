"""Qwen3."""

from of_jax.interop.families import Tree
from of_jax.interop.families.llama import Llama
from of_jax.interop.rope import window_fields
from of_jax.interop.tensors import Tensors


class Qwen3(Llama):
  """LLaMA with queries and keys normed over the head."""

  head_dim_default = 128

  def model_fields(self, tensors: Tensors) -> Tree:
    used = self.settings.flag("use_sliding_window", False)
    self.settings.set_aside("sliding_window|max_window_layers")  # Read below, where they act.
    full = self.settings.integer("max_window_layers", 28) if used else self.depth
    layers = ["full_attention" if i < full else "sliding_attention" for i in range(self.depth)]
    window = self.settings.get("sliding_window", 4096) if used else None
    return {**super().model_fields(tensors), "qk_norm": "rms",
            **window_fields(self.settings, layers, window)}

  def block(self, tensors: Tensors, layer: int) -> Tree:
    tree = super().block(tensors, layer)
    for ours, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
      tree["attention"][ours] = self.norm(tensors, f"layers.{layer}.self_attn.{theirs}",
                                          self.head_dim)
    return tree
