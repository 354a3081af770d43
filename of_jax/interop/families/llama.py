"""LLaMA, and the base of the families that took over its names."""

from of_jax.interop.families import GATED, Family, Tree
from of_jax.interop.rope import rope_fields
from of_jax.interop.settings import Settings
from of_jax.interop.tensors import Tensors


class Llama(Family):
  """Pre-RMSNorm, rotary, gated MLP, keys and values shared by groups of heads.

  Attributes:
    norms: our name of each norm of a block -> theirs.
    activation: the config's field that names the MLP's activation, and its default.
    head_dim_default: neurons of a head where the config does not say; None: width / heads.
    tied_default: where the config does not say whether embeddings are tied.
  """

  norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
  activation = ("hidden_act", "silu")
  head_dim_default: int | None = None
  tied_default = False

  def __init__(self, settings: Settings):
    super().__init__(settings)
    heads = settings.integer("num_attention_heads")
    head_dim = settings.get("head_dim", self.head_dim_default)
    self.set_sizes(
        settings.integer("hidden_size"), settings.integer("num_hidden_layers"), heads,
        settings.integer("intermediate_size"), settings.integer("num_key_value_heads", heads),
        None if head_dim is None else settings.integer("head_dim", head_dim))
    self.tied = settings.flag("tie_word_embeddings", self.tied_default)
    self.attention_bias = settings.flag("attention_bias", False)
    self.mlp_bias = settings.flag("mlp_bias", False)

  def model_fields(self, tensors: Tensors) -> Tree:
    settings = self.settings
    return {**self.sizes(), "block": "pre", "norm": "rms", "final_norm": True,
            "norm_eps": settings.number("rms_norm_eps", 1e-6), **rope_fields(settings),
            "mlp": settings.choice(self.activation[0], GATED, self.activation[1]),
            "linear_bias": self.attention_bias or self.mlp_bias}

  def outside(self, tensors: Tensors) -> Tree:
    tensors.ignore(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "rotary frequencies, which "
                   "follow from the config")
    return {**self.tables(tensors, "embed_tokens", "lm_head"),
            "final_norm": self.norm(tensors, "norm", self.width)}

  def block(self, tensors: Tensors, layer: int) -> Tree:
    at = f"layers.{layer}"
    width, hidden = (self.width,), (self.hidden,)
    heads, groups = (self.heads, self.head_dim), (self.kv_heads, self.head_dim)
    attention = {
        ours: self.linear(tensors, f"{at}.self_attn.{theirs}_proj", inputs, outputs,
                          bias=self.attention_bias)
        for ours, theirs, inputs, outputs in (
            ("query", "q", width, heads), ("key", "k", width, groups),
            ("value", "v", width, groups), ("out", "o", heads, width))}
    mlp = {name: self.linear(tensors, f"{at}.mlp.{name}_proj", inputs, outputs, bias=self.mlp_bias)
           for name, inputs, outputs in (
               ("gate", width, hidden), ("up", width, hidden), ("down", hidden, width))}
    norms = {ours: self.norm(tensors, f"{at}.{theirs}", self.width)
             for ours, theirs in self.norms.items()}
    return {"attention": attention, "mlp": mlp, **norms}
