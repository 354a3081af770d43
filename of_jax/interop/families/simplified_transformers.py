"""The code released with the outlier-feature paper, github.com/bobby-he/simplified_transformers."""

import numpy as np

from of_jax.interop.families import PLAIN, Family, Tree, split_fused
from of_jax.interop.settings import Settings
from of_jax.interop.tensors import Tensors

# Where a gain stands: our name of it, and theirs.
_GAINS = {"attention_gain": "attn_block_resid_gain", "mlp_gain": "mlp_block_resid_gain",
          "attention_skip": "attn_block_skip_gain", "mlp_skip": "mlp_block_skip_gain"}
_TRAINABLE = ("trainable_attn_block_gains", "trainable_mlp_block_gains")


class SimplifiedTransformers(Family):
  """GPT-2 with other blocks (He & Hofmann 2023, 2311.01906; He et al. 2024, 2405.19279).

  Its RMSNorm adds eps to the root, its LayerNorms inside. The final norm is a LayerNorm whatever
  the blocks have, and so is the norm of block 0's attention input where they have none. Gains of
  branches and skips become fixed numbers where all blocks agree and the config trains none.
  """

  prefix = "transformer."

  def __init__(self, settings: Settings):
    super().__init__(settings)
    width = settings.integer("n_embd")
    multiple = settings.integer("mlp_width_mult", 4)
    self.set_sizes(width, settings.integer("n_layer"), settings.integer("n_head"),
                   settings.integer("n_inner", multiple * width))
    self.tied = True
    self.norm_type = settings.choice(
        "norm_type", {"ln": "layer", "rmsnorm": "rms", "none": "none"}, "rmsnorm")
    self.qk_norm = settings.choice("qk_norm_type", {"rmsnorm": "rms", "none": "none"}, "none")
    self.parallel = settings.flag("parallel_layers", False)
    self.post = settings.choice("norm_position", {"pre": False, "post": True}, "pre")
    self._refuse_what_cannot_be()
    # The values at init of gains, which are tensors; and what only training reads.
    settings.set_aside(r"n_ctx|n_positions|trainable_.*|attn_mat_.*_gain|centre_attn_gain|"
                       r"(attn|mlp)_block_.*_gain|name|context_length")

  def _refuse_what_cannot_be(self) -> None:
    settings = self.settings
    for name in ("value_skip_gain", "proj_skip_gain", "tie_valproj_init",
                 "first_layer_value_resid_gain", "last_layer_proj_resid_gain"):
      settings.refuse(name, what="identity values and projections cannot be expressed; it must "
                      "be null")
    for name in ("value_resid_gain", "proj_resid_gain"):
      settings.refuse(name, 1, what="gains of values and projections cannot be expressed; it must "
                      "be 1")
    for name in ("val_init_type", "proj_init_type"):
      settings.refuse(name, "normal", "orth", "id", what="unknown")
    settings.refuse("centre_attn", False, what="shaped attention cannot be expressed")
    settings.refuse("scale_attn_weights", True, what="logits without 1 / sqrt(head size) cannot be "
                    "expressed")
    settings.refuse("scale_attn_by_inverse_layer_idx", False,
                    what="of_jax has no scale of the logits by the layer's number")
    settings.refuse("tie_word_embeddings", True, what="their unembedding is the token embedding")
    skips = ("mlp_block_skip_gain",) if self.parallel else tuple(
        name for ours, name in _GAINS.items() if ours.endswith("skip"))
    for name in skips:
      # A trained gain may have become 0; one that starts there is not in their forward pass.
      settings.require(settings.number(name, 1.0) != 0, name,
                       "a skipless block cannot be expressed")
    for condition, name, what in (
        (self.parallel and self.post, "norm_position",
         "parallel layers behind a norm of the stream cannot be expressed"),
        (self.parallel and self.norm_type == "none", "norm_type",
         "parallel layers without norms, but for block 0's, cannot be expressed"),
        (self.post and self.norm_type == "none", "norm_type",
         "a stream normed in block 0 alone cannot be expressed")):
      settings.require(not condition, name, what)

  def positions(self, tensors: Tensors) -> int:
    # n_ctx of their runs is what they train on; the table has GPT-2's 1,024 rows.
    rows = tensors.shape("wpe.weight")[:1]
    return rows[0] if rows else 1  # Without axes it is refused when it is taken.

  def model_fields(self, tensors: Tensors) -> Tree:
    settings = self.settings
    fields = {
        **self.sizes(), **self._gain_fields(tensors), "positions": "learned",
        "block": ("op" if self.norm_type == "none" else "parallel" if self.parallel
                  else "post_released" if self.post else "pre"),
        # Without norms in the blocks the name is read by nobody.
        "norm": "rms" if self.norm_type == "none" else self.norm_type,
        "norm_eps": settings.number("layer_norm_epsilon", 1e-5),
        "norm_eps_placement": "outside_rms", "final_norm": True, "final_norm_kind": "layer",
        "first_attention_norm": self.norm_type == "none", "qk_norm": self.qk_norm,
        "qk_bias": True, "linear_bias": self._has_offsets(tensors),
        # Their cap is a constant in the code, 30.
        "attention_cap": settings.choice("dot_norm_type", {"tanh": 30.0, "none": None}, "none")}
    if settings.get("activation_function", "leaky_relu") != "leaky_relu":
      settings.set_aside("lrelu_neg_slope")
      return {**fields, "mlp": settings.choice("activation_function", PLAIN)}
    slope = settings.number("lrelu_neg_slope", 0.0)
    settings.require(slope >= 0, "lrelu_neg_slope", "must not be negative")
    return {**fields, "mlp": "leaky_relu" if slope else "relu",
            **({"leaky_relu_slope": slope} if slope else {})}

  def _gain_fields(self, tensors: Tensors) -> Tree:
    names = [ours for ours in _GAINS if not (self.parallel and ours == "attention_skip")]
    gains = {ours: [tensors.look(f"h.{layer}.{_GAINS[ours]}", (1,)).item()
                    for layer in range(self.depth)]
             for ours in names}
    skips = {value for ours in names if ours.endswith("skip") for value in gains[ours]}
    agree = all(len(set(values)) == 1 for values in gains.values()) and len(skips) == 1
    self.trained_gains = not agree or any(
        self.settings.flag(name, False) for name in _TRAINABLE)
    attention, mlp = gains["attention_gain"][0], gains["mlp_gain"][0]
    skip = skips.pop()
    if self.trained_gains:
      # Where they started: what they are now is in the parameters.
      return {"beta_trainable": True, "beta_attention": self._start("attention_gain"),
              "beta_mlp": self._start("mlp_gain"), "skip_gain": self._start("mlp_skip")}
    # An op block would take None for its default.
    fixed = self.norm_type == "none" or attention != 1 or mlp != 1
    return {"beta_attention": attention if fixed else None, "beta_mlp": mlp if fixed else None,
            "skip_gain": None if skip == 1 else skip}

  def _start(self, ours: str) -> float:
    return self.settings.number(_GAINS[ours], 1.0)

  def _has_offsets(self, tensors: Tensors) -> bool:
    """Tells whether biases that their code keeps at zero are not zero here."""
    sizes = {"attn.v_attn": self.width, "attn.c_proj": self.width, "mlp.c_fc": self.hidden,
             "mlp.c_proj": self.width}
    found = ((f"h.{layer}.{name}.bias", (size,))
             for layer in range(self.depth) for name, size in sizes.items())
    return any(tensors.look(name, shape).any() for name, shape in found if name in tensors)

  def outside(self, tensors: Tensors) -> Tree:
    tree = self.tables(tensors, "wte", "lm_head")
    tree["embedding"]["position"] = tensors.take("wpe.weight",
                                                 (self.positions(tensors), self.width))
    tree["final_norm"] = super().norm(tensors, "ln_f", self.width, bias=True)
    tensors.ignore(r"h\.\d+\.attn\.(attn_mat_skip_gain|centre_attn_gain)",
                   "of shaped attention, which centre_attn=false turns off")
    tensors.ignore(r"h\.\d+\.attn\.(uniform_causal_attn_mat|diag|bias)", "constants of their code")
    if self.parallel:
      tensors.ignore(r"h\.\d+\.(ln_2\..*|attn_block_skip_gain)", "parallel layers do not use it")
    return tree

  def block(self, tensors: Tensors, layer: int) -> Tree:
    at = f"h.{layer}"
    # An op block has gains as parameters where they are trained.
    tree: Tree = {"attention": self._attention(tensors, f"{at}.attn"),
                  "mlp": {"up": self._linear(tensors, f"{at}.mlp.c_fc", self.width, self.hidden),
                          "down": self._linear(tensors, f"{at}.mlp.c_proj", self.hidden,
                                               self.width)}}
    if self.norm_type == "none":
      if layer == 0:
        tree["attention_norm"] = super().norm(tensors, f"{at}.ln_1", self.width, bias=True)
    elif self.parallel:
      tree["norm"] = self._block_norm(tensors, f"{at}.ln_1")
    else:
      tree["attention_norm"] = self._block_norm(tensors, f"{at}.ln_1")
      tree["mlp_norm"] = self._block_norm(tensors, f"{at}.ln_2")
    for ours, theirs in _GAINS.items():
      if not (self.parallel and ours == "attention_skip"):
        value = tensors.take(f"{at}.{theirs}", (1,))[0]
        if self.trained_gains:
          tree[ours] = {"value": value}
    return tree

  def _block_norm(self, tensors: Tensors, name: str) -> Tree:
    if self.norm_type == "layer":
      return super().norm(tensors, name, self.width, bias=True)
    return {"scale": tensors.take(f"{name}.scale", (self.width,))}

  def _linear(self, tensors: Tensors, name: str, inputs: int, outputs: int) -> Tree:
    """Reads a linear map; a bias that is left out, or zero as their code keeps it, is dropped."""
    tree = self.linear(tensors, name, (inputs,), (outputs,), out_first=False)
    return tree if np.any(tree.get("bias", 0)) else {"kernel": tree["kernel"]}

  def _attention(self, tensors: Tensors, at: str) -> Tree:
    heads = (self.heads, self.head_dim)
    fused = self.linear(tensors, f"{at}.qk_attn", (self.width,), (2, *heads), out_first=False,
                        bias=True)
    query, key = split_fused(fused, axis=3, count=2)
    value, out = (self._linear(tensors, f"{at}.{name}", self.width, self.width)
                  for name in ("v_attn", "c_proj"))
    value = {name: part.reshape(*part.shape[:-1], *heads) for name, part in value.items()}
    # Their gain on a head's softmax is one on the rows of the projection that read the head.
    gain = tensors.take(f"{at}.attn_mat_resid_gain", (1, self.heads, 1, 1)).reshape(-1, 1, 1)
    out["kernel"] = out["kernel"].reshape(*heads, self.width) * np.float32(gain)
    tree = {"query": query, "key": key, "value": value, "out": out}
    if self.qk_norm != "none":
      for ours, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
        tree[ours] = {"scale": tensors.take(f"{at}.{theirs}.scale", (self.head_dim,))}
    return tree
