"""OLMo 2."""

from of_jax.interop.families import Tree
from of_jax.interop.families.llama import Llama
from of_jax.interop.tensors import Tensors


class OLMo2(Llama):
  """LLaMA with norms behind the branches, and queries and keys normed over all heads together."""

  norms = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}

  def biases(self) -> tuple[bool, bool, bool]:
    attention = self.settings.flag("attention_bias", False)
    return attention, attention, False

  def model_fields(self, tensors: Tensors) -> Tree:
    return {**super().model_fields(tensors), "block": "output", "qk_norm": "rms",
            "qk_norm_over": "width",
            "norm_eps": self.settings.number("rms_norm_eps", 1e-5)}

  def block(self, tensors: Tensors, layer: int) -> Tree:
    tree = super().block(tensors, layer)
    for ours, theirs, heads in (("query_norm", "q_norm", self.heads),
                                ("key_norm", "k_norm", self.kv_heads)):
      tree["attention"][ours] = self.norm(tensors, f"layers.{layer}.self_attn.{theirs}",
                                          heads * self.head_dim)
    return tree
