"""Families of foreign models: one class a file, named as `model_type` in a config.json is.

Enters: a model's own config and its tensors. Leaves: fields of our config, and parameters under
our names, kernels (in, out), biases that the original has not left out.
"""

import math
from typing import Any

from of_jax.errors import UserError
from of_jax.interop.settings import Settings
from of_jax.interop.tensors import Tensors

Tree = dict[str, Any]
Shape = tuple[int, ...]

# Names of activations in transformers' table -> ours, plain and gated.
PLAIN = {"relu": "relu", "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu",
         "gelu_fast": "gelu", "silu": "silu", "swish": "silu"}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu",
         "gelu_fast": "geglu", "relu": "reglu"}


def split_fused(fused: Tree, axis: int, count: int = 3) -> list[Tree]:
  """Splits a linear map that is `count` in one, along an axis counted from the end."""
  return [{name: part.take(i, axis=part.ndim - axis) for name, part in fused.items()}
          for i in range(count)]


class Family:
  """Base of the families. A subclass names its tensors.

  Attributes:
    prefix: what the body's tensors are called behind, in a language model's file.
    settings: the model's own config.
    width, depth, heads, kv_heads, head_dim, hidden: sizes, filled by the subclass.
    tied: whether the unembedding is the token embedding.
  """

  prefix = "model."

  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  hidden: int
  tied: bool

  def __init__(self, settings: Settings):
    self.settings = settings

  def vocab_size(self) -> int:
    """Number of rows of the embedding."""
    return self.settings.integer("vocab_size")

  def positions(self, tensors: Tensors) -> int:
    """Length of the longest sequence that the model was made for."""
    del tensors
    return self.settings.integer("max_position_embeddings")

  def model_fields(self, tensors: Tensors) -> Tree:
    """Fields of ModelConfig. Tensors may be looked at, not taken."""
    raise NotImplementedError

  def outside(self, tensors: Tensors) -> Tree:
    """Reads the parameters outside the blocks."""
    raise NotImplementedError

  def block(self, tensors: Tensors, layer: int) -> Tree:
    """Reads the parameters of one block, counted from 0."""
    raise NotImplementedError

  def sizes(self) -> Tree:
    """Fields of ModelConfig that are this object's own attributes."""
    return {"width": self.width, "depth": self.depth, "heads": self.heads,
            "kv_heads": self.kv_heads, "head_dim": self.head_dim, "mlp_width": self.hidden,
            "tied_embeddings": self.tied}

  def set_sizes(self, width: int, depth: int, heads: int, hidden: int, kv_heads: int | None = None,
                head_dim: int | None = None) -> None:
    """Fills the attributes; heads that do not divide what they must are refused."""
    if head_dim is None and width % heads:
      raise UserError(f"{self.settings.where}: {heads} heads do not divide the width {width}")
    self.width, self.depth, self.heads, self.hidden = width, depth, heads, hidden
    self.kv_heads = heads if kv_heads is None else kv_heads
    self.head_dim = width // heads if head_dim is None else head_dim

  def linear(self, tensors: Tensors, name: str, inputs: Shape, outputs: Shape,
             out_first: bool = True, bias: bool | None = None) -> Tree:
    """Reads a linear map [inputs.., outputs..] from the matrix `name`.weight.

    Args:
      out_first: whether it is stored (out, in), as torch.nn.Linear does; else (in, out).
      bias: whether `name`.bias must be there; None: if it is there.
    """
    rows, columns = math.prod(inputs), math.prod(outputs)
    kernel = tensors.take(f"{name}.weight", (columns, rows) if out_first else (rows, columns))
    tree = {"kernel": (kernel.T if out_first else kernel).reshape(*inputs, *outputs)}
    if f"{name}.bias" in tensors if bias is None else bias:
      tree["bias"] = tensors.take(f"{name}.bias", (columns,)).reshape(outputs)
    return tree

  def plain_mlp(self, tensors: Tensors, up: str, down: str, out_first: bool = True,
                bias: bool | None = None) -> Tree:
    """Reads an MLP of two linear maps; arguments as in `linear`."""
    width, hidden = (self.width,), (self.hidden,)
    return {"up": self.linear(tensors, up, width, hidden, out_first, bias),
            "down": self.linear(tensors, down, hidden, width, out_first, bias)}

  def layer_norms(self, tensors: Tensors, attention: str, mlp: str) -> Tree:
    """Reads the LayerNorms of a block's halves."""
    return {"attention_norm": self.norm(tensors, attention, self.width, bias=True),
            "mlp_norm": self.norm(tensors, mlp, self.width, bias=True)}

  def norm(self, tensors: Tensors, name: str, size: int, bias: bool = False) -> Tree:
    """Reads a norm's gain, and its offset if it has one."""
    tree = {"scale": tensors.take(f"{name}.weight", (size,))}
    if bias:
      tree["bias"] = tensors.take(f"{name}.bias", (size,))
    return tree

  def tables(self, tensors: Tensors, token: str, unembedding: str) -> Tree:
    """Reads the token embedding and the unembedding, [vocabulary, width] in the file both."""
    shape = (self.vocab_size(), self.width)
    table = tensors.take(f"{token}.weight", shape)
    if self.tied:
      tensors.ignore_copy(f"{unembedding}.weight", table)
      return {"embedding": {"token": table}}
    return {"embedding": {"token": table},
            "unembedding": {"kernel": tensors.take(f"{unembedding}.weight", shape).T}}
