"""OPT."""

from of_jax.interop.families import PLAIN, Family, Tree
from of_jax.interop.settings import Settings
from of_jax.interop.tensors import Tensors

# The position table's first rows are for padding: token t reads row t + 2.
_OFFSET = 2


class OPT(Family):
  """Pre-LN, or Post-LN in the 350m (`do_layer_norm_before`); learned positions; ReLU.

  The 350m has an embedding narrower than its stream and matrices in between, which are multiplied
  into the embedding and, no longer tied to it, the unembedding.
  """

  prefix = "model.decoder."

  def __init__(self, settings: Settings):
    super().__init__(settings)
    self.set_sizes(settings.integer("hidden_size"), settings.integer("num_hidden_layers"),
                   settings.integer("num_attention_heads"), settings.integer("ffn_dim"))
    self.embedding_width = settings.integer("word_embed_proj_dim", self.width)
    self.originally_tied = settings.flag("tie_word_embeddings", True)
    self.tied = self.originally_tied and self.embedding_width == self.width
    self.norm_before = settings.flag("do_layer_norm_before", True)
    removed = settings.flag("_remove_final_layer_norm", False)
    self.has_final_norm = self.norm_before and not removed
    self.bias = settings.flag("enable_bias", True)

  def positions(self, tensors: Tensors) -> int:
    return self.settings.integer("max_position_embeddings", 2048)

  def model_fields(self, tensors: Tensors) -> Tree:
    settings = self.settings
    settings.refuse("layer_norm_elementwise_affine", True, what="of_jax's LayerNorm has a gain and "
                    "an offset")
    return {**self.sizes(), "block": "pre" if self.norm_before else "post", "norm": "layer",
            # Not in the config: torch.nn.LayerNorm's own.
            "norm_eps": 1e-5, "positions": "learned", "final_norm": self.has_final_norm,
            "mlp": settings.choice("activation_function", PLAIN, "relu"),
            "linear_bias": self.bias}

  def outside(self, tensors: Tensors) -> Tree:
    tree = self._tables(tensors)
    rows = tensors.take("embed_positions.weight", (self.positions(tensors) + _OFFSET, self.width))
    tree["embedding"]["position"] = rows[_OFFSET:]
    if self.has_final_norm:
      tree["final_norm"] = self.norm(tensors, "final_layer_norm", self.width, bias=True)
    return tree

  def _tables(self, tensors: Tensors) -> Tree:
    if self.embedding_width == self.width:
      return self.tables(tensors, "embed_tokens", "lm_head")
    shape = (self.vocab_size(), self.embedding_width)
    token = tensors.take("embed_tokens.weight", shape)
    if self.originally_tied:
      tensors.ignore_copy("lm_head.weight", token)
      head = token
    else:
      head = tensors.take("lm_head.weight", shape)
    enter = tensors.take("project_in.weight", (self.width, self.embedding_width))
    leave = tensors.take("project_out.weight", (self.embedding_width, self.width))
    # In float64: it is then the one rounding to float32 that folding costs.
    return {"embedding": {"token": (token.astype("f8") @ enter.T).astype("f4")},
            "unembedding": {"kernel": (leave.T.astype("f8") @ head.T).astype("f4")}}

  def block(self, tensors: Tensors, layer: int) -> Tree:
    at, width, heads = f"layers.{layer}", (self.width,), (self.heads, self.head_dim)
    attention = {ours: self.linear(tensors, f"{at}.self_attn.{theirs}_proj", width, heads,
                                   bias=self.bias)
                 for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))}
    attention["out"] = self.linear(tensors, f"{at}.self_attn.out_proj", heads, width,
                                   bias=self.bias)
    return {
        "attention": attention,
        **self.layer_norms(tensors, f"{at}.self_attn_layer_norm", f"{at}.final_layer_norm"),
        "mlp": self.plain_mlp(tensors, f"{at}.fc1", f"{at}.fc2", bias=self.bias)}
