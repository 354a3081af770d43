"""LLaMA, and the base of the families that took over its names."""

from of_jax.interop.families import GATED, Family, Tree
from of_jax.interop.rope import Spelling, rope_fields
from of_jax.interop.settings import Settings
from of_jax.interop.tensors import Tensors


class Llama(Family):
  """Pre-RMSNorm, rotary, gated MLP, keys and values shared by groups of heads.

  Attributes:
    norms: our name of each norm of a block -> theirs.
    activation, activations: the config's field that names the MLP's activation, and its default;
      names there -> ours.
    head_dim_default, kv_heads_default: neurons of a head, and heads of keys and values, where the
      config does not say; None, and null in the config: width / heads, and as many as queries.
    tied_default: where the config does not say whether embeddings are tied.
    rope: how the config spells rotary settings.
    attention_bias, out_bias, mlp_bias: which maps have offsets.
  """

  norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
  activation = ("hidden_act", "silu")
  activations = GATED
  head_dim_default: int | None = None
  kv_heads_default: int | None = None
  tied_default = False
  rope = Spelling()

  def __init__(self, settings: Settings):
    super().__init__(settings)
    heads = settings.integer("num_attention_heads")
    head_dim = settings.get("head_dim", self.head_dim_default)
    kv_heads = settings.get("num_key_value_heads", self.kv_heads_default)
    self.set_sizes(
        settings.integer("hidden_size"), settings.integer("num_hidden_layers"), heads,
        settings.integer("intermediate_size"),
        settings.integer("num_key_value_heads", kv_heads or heads),
        None if head_dim is None else settings.integer("head_dim", head_dim))
    self.tied = settings.flag("tie_word_embeddings", self.tied_default)
    self.attention_bias, self.out_bias, self.mlp_bias = self.biases()

  def positions(self, tensors: Tensors) -> int:
    return self.settings.integer("max_position_embeddings", self.rope.longest)

  def biases(self) -> tuple[bool, bool, bool]:
    """Reads which maps have offsets: those of queries, keys and values, of the output, the MLP's.

    A field that transformers' code for the family does not look at is not read.
    """
    attention = self.settings.flag("attention_bias", False)
    return attention, attention, self.settings.flag("mlp_bias", False)

  def model_fields(self, tensors: Tensors) -> Tree:
    settings = self.settings
    return {**self.sizes(), "block": "pre", "norm": "rms", "final_norm": True,
            "norm_eps": settings.number("rms_norm_eps", 1e-6),
            **rope_fields(settings, self.head_dim, self.rope),
            "mlp": settings.choice(self.activation[0], self.activations, self.activation[1]),
            "linear_bias": self.attention_bias or self.out_bias or self.mlp_bias}

  def outside(self, tensors: Tensors) -> Tree:
    tensors.ignore(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "rotary frequencies, which "
                   "follow from the config")
    return {**self.tables(tensors, "embed_tokens", "lm_head"),
            "final_norm": self.norm(tensors, "norm", self.width)}

  def block(self, tensors: Tensors, layer: int) -> Tree:
    at, width, heads = f"layers.{layer}", (self.width,), (self.heads, self.head_dim)
    return {
        "attention": {
            **self.queries_keys_values(tensors, f"{at}.self_attn"),
            "out": self.linear(tensors, f"{at}.self_attn.o_proj", heads, width,
                               bias=self.out_bias)},
        "mlp": {
            **self.gate_and_up(tensors, f"{at}.mlp"),
            "down": self.linear(tensors, f"{at}.mlp.down_proj", (self.hidden,), width,
                                bias=self.mlp_bias)},
        **{ours: self.norm(tensors, f"{at}.{theirs}", self.width)
           for ours, theirs in self.norms.items()}}

  def queries_keys_values(self, tensors: Tensors, at: str) -> Tree:
    """Reads three maps into the heads."""
    groups = self.kv_heads, self.head_dim
    return {ours: self.linear(tensors, f"{at}.{theirs}_proj", (self.width,), outputs,
                              bias=self.attention_bias)
            for ours, theirs, outputs in (("query", "q", (self.heads, self.head_dim)),
                                          ("key", "k", groups), ("value", "v", groups))}

  def gate_and_up(self, tensors: Tensors, at: str) -> Tree:
    """Reads two maps into the MLP."""
    return {name: self.linear(tensors, f"{at}.{name}_proj", (self.width,), (self.hidden,),
                              bias=self.mlp_bias) for name in ("gate", "up")}
