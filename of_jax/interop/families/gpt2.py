"""GPT-2."""

from of_jax.interop.families import PLAIN, Family, Tree, split_fused
from of_jax.interop.settings import Settings
from of_jax.interop.tensors import Tensors


class GPT2(Family):
  """Pre-LN, learned positions, matrices stored (in, out), one for queries, keys and values."""

  prefix = "transformer."

  def __init__(self, settings: Settings):
    super().__init__(settings)
    width = settings.integer("n_embd")
    self.set_sizes(width, settings.integer("n_layer"), settings.integer("n_head"),
                   settings.integer("n_inner", 4 * width))
    self.tied = settings.flag("tie_word_embeddings", True)

  def positions(self, tensors: Tensors) -> int:
    return self.settings.integer("n_positions", 1024)

  def model_fields(self, tensors: Tensors) -> Tree:
    settings = self.settings
    settings.refuse("scale_attn_weights", True, what="logits without 1 / sqrt(head size) are not "
                    "GPT-2's")
    settings.refuse("scale_attn_by_inverse_layer_idx", False,
                    what="of_jax has no scale of the logits by the layer's number")
    settings.refuse("add_cross_attention", False, what="a decoder of another's states, not a "
                    "language model alone")
    return {**self.sizes(), "block": "pre", "norm": "layer", "positions": "learned",
            "norm_eps": settings.number("layer_norm_epsilon", 1e-5), "final_norm": True,
            "mlp": settings.choice("activation_function", PLAIN, "gelu_new"), "linear_bias": True}

  def outside(self, tensors: Tensors) -> Tree:
    tree = self.tables(tensors, "wte", "lm_head")
    tree["embedding"]["position"] = tensors.take("wpe.weight",
                                                 (self.positions(tensors), self.width))
    tree["final_norm"] = self.norm(tensors, "ln_f", self.width, bias=True)
    tensors.ignore(r"h\.\d+\.attn\.(masked_)?bias", "the causal mask")
    return tree

  def block(self, tensors: Tensors, layer: int) -> Tree:
    at, width, heads = f"h.{layer}", (self.width,), (self.heads, self.head_dim)
    fused = self.linear(tensors, f"{at}.attn.c_attn", width, (3, *heads), out_first=False)
    # [3, heads, head size]: queries, keys and values in turn.
    query, key, value = split_fused(fused, axis=3)
    return {
        **self.layer_norms(tensors, f"{at}.ln_1", f"{at}.ln_2"),
        "attention": {"query": query, "key": key, "value": value,
                      "out": self.linear(tensors, f"{at}.attn.c_proj", heads, width,
                                         out_first=False)},
        "mlp": self.plain_mlp(tensors, f"{at}.mlp.c_fc", f"{at}.mlp.c_proj", out_first=False)}
