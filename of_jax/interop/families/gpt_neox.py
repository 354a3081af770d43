"""GPT-NeoX and Pythia."""

from of_jax.interop.families import PLAIN, Family, Tree, split_fused
from of_jax.interop.rope import Spelling, rope_fields
from of_jax.interop.settings import Settings
from of_jax.interop.tensors import Tensors


class GPTNeoX(Family):
  """Attention and MLP side by side, each behind its LayerNorm; rotary on a quarter of a head."""

  prefix = "gpt_neox."
  rope = Spelling("rotary_emb_base", "rotary_pct", 0.25, turns_whole_heads=False)

  def __init__(self, settings: Settings):
    super().__init__(settings)
    self.set_sizes(settings.integer("hidden_size"), settings.integer("num_hidden_layers"),
                   settings.integer("num_attention_heads"), settings.integer("intermediate_size"))
    self.tied = settings.flag("tie_word_embeddings", False)
    self.attention_bias = settings.flag("attention_bias", True)

  def positions(self, tensors: Tensors) -> int:
    return self.settings.integer("max_position_embeddings", self.rope.longest)

  def model_fields(self, tensors: Tensors) -> Tree:
    settings = self.settings
    parallel = settings.flag("use_parallel_residual", True)
    return {**self.sizes(), "block": "parallel_two_norms" if parallel else "pre", "norm": "layer",
            "norm_eps": settings.number("layer_norm_eps", 1e-5), "final_norm": True,
            **rope_fields(settings, self.head_dim, self.rope),
            "mlp": settings.choice("hidden_act", PLAIN, "gelu"), "linear_bias": True}

  def outside(self, tensors: Tensors) -> Tree:
    head = "lm_head" if "lm_head.weight" in tensors else "embed_out"
    tree = self.tables(tensors, "embed_in", head)
    tree["final_norm"] = self.norm(tensors, "final_layer_norm", self.width, bias=True)
    tensors.ignore(r"layers\.\d+\.attention\.(masked_)?bias", "the causal mask")
    tensors.ignore(r"(layers\.\d+\.attention\.)?rotary_emb\.inv_freq", "rotary frequencies, which "
                   "follow from the config")
    return tree

  def block(self, tensors: Tensors, layer: int) -> Tree:
    at, width, heads = f"layers.{layer}", (self.width,), (self.heads, self.head_dim)
    fused = self.linear(tensors, f"{at}.attention.query_key_value", width,
                        (self.heads, 3, self.head_dim), bias=self.attention_bias)
    # [heads, 3, head size]: each head has its query, key and value together.
    query, key, value = split_fused(fused, axis=2)
    return {
        **self.layer_norms(tensors, f"{at}.input_layernorm", f"{at}.post_attention_layernorm"),
        "attention": {"query": query, "key": key, "value": value,
                      "out": self.linear(tensors, f"{at}.attention.dense", heads, width,
                                         bias=self.attention_bias)},
        "mlp": self.plain_mlp(tensors, f"{at}.mlp.dense_h_to_4h", f"{at}.mlp.dense_4h_to_h",
                              bias=True)}
