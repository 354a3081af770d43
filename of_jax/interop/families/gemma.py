"""Gemma, the first."""

import math

from of_jax.interop.families import GATED, Tree
from of_jax.interop.families.llama import Llama
from of_jax.interop.rope import Spelling
from of_jax.interop.tensors import Tensors


class Gemma(Llama):
  """LLaMA whose embedding is multiplied by sqrt(width); gains of norms are stored less 1."""

  activation = ("hidden_act", "gelu_pytorch_tanh")
  # The first configs say gelu and mean its approximation.
  activations = {**GATED, "gelu": "geglu"}
  tied_default = True
  head_dim_default = 256
  kv_heads_default = 16
  rope = Spelling(longest=8192)

  def biases(self) -> tuple[bool, bool, bool]:
    attention = self.settings.flag("attention_bias", False)
    return attention, attention, False

  def model_fields(self, tensors: Tensors) -> Tree:
    self.settings.refuse("use_bidirectional_attention", False, what="of_jax's attention is causal")
    return {**super().model_fields(tensors), "embedding_scale": math.sqrt(self.width)}

  def norm(self, tensors: Tensors, name: str, size: int, bias: bool = False) -> Tree:
    return {"scale": 1 + super().norm(tensors, name, size, bias)["scale"]}
