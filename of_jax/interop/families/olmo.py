"""OLMo, the first."""

import numpy as np

from of_jax.interop.families import Tree
from of_jax.interop.families.llama import Llama
from of_jax.interop.tensors import Tensors


class OLMo(Llama):
  """LLaMA with LayerNorms that have neither gain nor offset, and perhaps clipped attention."""

  def biases(self) -> tuple[bool, bool, bool]:
    attention = self.settings.flag("attention_bias", False)
    return attention, attention, False

  def model_fields(self, tensors: Tensors) -> Tree:
    return {**super().model_fields(tensors), "norm": "layer",
            # Not in the config: a constant of their code.
            "norm_eps": 1e-5,
            "attention_clip": self.settings.optional_number("clip_qkv")}

  def norm(self, tensors: Tensors, name: str, size: int, bias: bool = False) -> Tree:
    return {"scale": np.ones(size, np.float32), "bias": np.zeros(size, np.float32)}
