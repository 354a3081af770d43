"""Gemma 2."""

from of_jax.interop.families import GATED, Tree
from of_jax.interop.families.gemma import Gemma
from of_jax.interop.rope import window_fields
from of_jax.interop.tensors import Tensors


class Gemma2(Gemma):
  """Gemma with norms on both sides of a branch, caps on logits, a window in every other block."""

  norms = {"attention_norm": "input_layernorm", "attention_output_norm": "post_attention_layernorm",
           "mlp_norm": "pre_feedforward_layernorm",
           "mlp_output_norm": "post_feedforward_layernorm"}
  activation = ("hidden_activation", "gelu_pytorch_tanh")
  activations = GATED
  kv_heads_default = 4

  def model_fields(self, tensors: Tensors) -> Tree:
    settings = self.settings
    layers = ["full_attention" if i % 2 else "sliding_attention" for i in range(self.depth)]
    window = settings.get("sliding_window", 4096)
    settings.set_aside("hidden_act")  # Written beside hidden_activation, which is what acts.
    return {**super().model_fields(tensors), "block": "peri",
            "attention_scale": settings.number("query_pre_attn_scalar", 256.0) ** -0.5,
            "attention_cap": settings.optional_number("attn_logit_softcapping", 50.0),
            "logit_cap": settings.optional_number("final_logit_softcapping", 30.0),
            **window_fields(settings, layers, window)}
