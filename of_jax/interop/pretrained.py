"""Assembly of a foreign model from its family, its config and its tensors."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.config import Config
from of_jax.data.tokenizer import Encoder
from of_jax.errors import UserError
from of_jax.interop.families import Tree
from of_jax.interop.report import LoadReport
from of_jax.interop.source import Source
from of_jax.models.functional import Network, Parameters, build_network, named_leaves

if TYPE_CHECKING:
  from tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Model that was trained elsewhere, with everything that ours have.

  Attributes:
    config: resolved; `train.sequence_length` is the longest sequence it was made for.
    model: see of_jax.models.functional.Network.
    params: float32.
    tokenizer: of the `tokenizers` library, None where the model came with none.
    report: what loading did; print it.
  """

  config: Config
  model: Network
  params: Parameters
  tokenizer: "Tokenizer | None"
  report: LoadReport

  def logits(self, tokens_BxT: Any) -> np.ndarray:
    """Computes logits, float32 [batch, time, vocabulary], in full float32 on every device.

    Raises:
      UserError: tokens that the vocabulary or the position table lacks.
    """
    tokens_BxT = np.asarray(tokens_BxT)
    if tokens_BxT.ndim != 2 or not np.issubdtype(tokens_BxT.dtype, np.integer):
      raise UserError(f"tokens of shape {tokens_BxT.shape} and type {tokens_BxT.dtype}: must be "
                      "whole numbers [batch, time]")
    vocab, longest = self.config.data.vocab_size, self.config.train.sequence_length
    if tokens_BxT.size and not 0 <= tokens_BxT.min() <= tokens_BxT.max() < vocab:
      raise UserError(f"tokens from {tokens_BxT.min()} to {tokens_BxT.max()}: must be at least 0 "
                      f"and below the vocabulary's {vocab}")
    if self.config.model.positions == "learned" and tokens_BxT.shape[1] > longest:
      raise UserError(f"sequences of {tokens_BxT.shape[1]} tokens: the model has positions for "
                      f"{longest}")
    with jax.default_matmul_precision("highest"):
      return np.asarray(self._apply(self.params, jnp.asarray(tokens_BxT, jnp.int32)))

  def encode(self, text: str) -> np.ndarray:
    """Encodes a text as tokens [tokens], begun by the begin token if `config.data.begin_token`.

    Special tokens that the text spells are text. No end token follows.

    Raises:
      UserError: the model came without a tokenizer.
    """
    if self.tokenizer is None:
      raise UserError(f"{self.report.path}: came without a tokenizer")
    data = self.config.data
    encoder = Encoder(self.tokenizer.to_str(), self.report.path, None, data.end_token_id,
                      data.begin_token_id)
    before = [data.begin_token_id] if data.begin_token else []
    return np.concatenate([before, encoder.encode([text])[0]]).astype(np.int32)

  @functools.cached_property
  def _apply(self) -> Any:
    return jax.jit(lambda params, tokens_BxT: self.model.apply(params, tokens_BxT)[0])


def assemble(source: Source, begin_token: str = "auto") -> Pretrained:
  """Assembles the model, its parameters on the first device.

  Args:
    begin_token: as in Source.config.

  Raises:
    UserError: what the config and the tensors do not agree on.
  """
  config = source.config(begin_token)
  model = build_network(config)
  params, report = read_parameters(source, model)
  return Pretrained(config, model, jax.tree.map(jnp.asarray, params), source.tokenizer, report)


def read_parameters(source: Source, model: Network) -> tuple[Tree, LoadReport]:
  """Reads every parameter of `model`, made by `source.config()`, as float32 NumPy arrays.

  Raises:
    UserError: tensors that are not those of the config.
  """
  family, tensors = source.family, source.tensors
  params = family.outside(tensors)
  blocks = [family.block(tensors, layer) for layer in range(family.depth)]
  tensors.finish()
  zeros: list[str] = []
  params["stacks"], start = {}, 0
  for name, shapes in model.shapes["stacks"].items():
    depth = jax.tree.leaves(shapes)[0].shape[0]
    params["stacks"][name] = _stack(shapes, blocks[start:start + depth], f"stacks/{name}", zeros)
    start += depth
  _check_shapes(params, model.shapes, source.where)
  count = sum(leaf.size for path, leaf in named_leaves(params).items() if path not in zeros)
  return params, LoadReport(
      source.where, source.kind, tuple(tensors.used), tuple(tensors.ignored), tuple(zeros),
      family.settings.unread() + source.unread, count,
      (*source.notes, *family.settings.notes, *source.special_notes()))


def _stack(shapes: Tree, blocks: list[Tree], path: str, zeros: list[str]) -> Tree:
  """Stacks blocks into one, with zeros for the biases that they lack."""
  stacked: Tree = {}
  for name, shape in shapes.items():
    here = f"{path}/{name}"
    if isinstance(shape, dict):
      stacked[name] = _stack(shape, [block.get(name, {}) for block in blocks], here, zeros)
      continue
    parts = [block.get(name) for block in blocks]
    is_bias = name == "bias" and "kernel" in shapes
    if is_bias and all(part is None for part in parts):
      zeros.append(here)
    assert is_bias or all(part is not None for part in parts), f"{here} was not read"
    zero = np.zeros(shape.shape[1:], np.float32)
    stacked[name] = np.stack([zero if part is None else part for part in parts])
  for block in blocks:
    assert block.keys() <= shapes.keys(), f"{path}: {block.keys() - shapes.keys()} have no place"
  return stacked


def _check_shapes(params: Tree, shapes: Tree, where: str) -> None:
  ours = {path: leaf.shape for path, leaf in named_leaves(params).items()}
  wanted = {path: leaf.shape for path, leaf in named_leaves(shapes).items()}
  for path in sorted(ours.keys() | wanted.keys()):
    assert ours.get(path) == wanted.get(path), (
        f"{where}: {path} became {ours.get(path)}, not {wanted.get(path)}")
