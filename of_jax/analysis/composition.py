"""Composition of heads: which head's output another's queries, keys or values read.

Enters: parameters. Leaves: scores of pairs of heads and of single components of a head's output,
and parameters without a component.

A head reads the stream and writes to it by W_OV = W_V W_O = sum_i s_i u_i v_i^T, and scores pairs
of tokens by W_QK = W_Q W_K^T, both [width, width] and of the head's rank; gains of the norms in
front are folded in. The composition score of A and B is |A B|_F / (|A|_F |B|_F) (Elhage et al.
2021): of head a and a head b of a later block |OV_a QK_b| for Q, |OV_a QK_b^T| for K and
|OV_a OV_b| for V. Of component i alone it is |v_i^T QK_b| / |QK_b|_F (Merullo et al. 2024,
2406.09519). Random matrices have about 1 / sqrt(width). Everything is in float64 and by the thin
factors; offsets, QK-norm and rotations by position are left out: with rotary positions the score
is that of tokens at the same place.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from of_jax.config import Config, traits
from of_jax.config.kinds import kind_of
from of_jax.errors import UserError
from of_jax.models.functional import Parameters

Floats = npt.NDArray[np.float64]
KINDS = ("q", "k", "v")


@dataclasses.dataclass(frozen=True)
class Head:
  """Thin factors of a head: W_OV = value out, W_QK = query key^T.

  Attributes:
    layer, index: of the block and the head, both from 0.
    query, key, value: [width, head_dim], with the gains of the norm that they read.
    out: [head_dim, width].
  """

  layer: int
  index: int
  query: Floats
  key: Floats
  value: Floats
  out: Floats

  @property
  def name(self) -> str:
    """Layer and head, as in 7.3."""
    return f"{self.layer}.{self.index}"

  def components(self) -> tuple[Floats, Floats, Floats]:
    """Singular vectors and values of W_OV: u [width, head_dim], s, v^T [head_dim, width]."""
    left, triangle = np.linalg.qr(self.value)
    inner, values, right = np.linalg.svd(triangle @ self.out, full_matrices=False)
    return left @ inner, values, right

  def reads(self, kind: str) -> tuple[Floats, Floats]:
    """Factors (A, B) of the matrix A B that head b applies to the stream, for q, k or v."""
    return {"q": (self.query, self.key.T), "k": (self.key, self.query.T),
            "v": (self.value, self.out)}[kind]


def heads_of(config: Config, params: Parameters) -> list[Head]:
  """Lists the heads of a model, from the first block.

  Raises:
    UserError: a model whose heads are not matrices between streams.
  """
  _check(config)
  found: list[Head] = []
  for stack in params["stacks"].values():
    attention = stack["attention"]
    query, key, value, out = (np.asarray(attention[name]["kernel"], np.float64)
                              for name in ("query", "key" if "key" in attention else "query",
                                           "value", "out"))
    gain = np.asarray(_gain(stack), np.float64)
    group = query.shape[2] // key.shape[2]
    for layer in range(len(query)):
      scale = np.broadcast_to(gain[layer], query.shape[1:2])[:, None]
      for head in range(query.shape[2]):
        shared = head // group
        found.append(Head(
            len(found) // query.shape[2], head, scale * query[layer, :, head],
            scale * key[layer, :, shared], scale * value[layer, :, shared], out[layer, head]))
  return found


def scores(heads: list[Head]) -> list[dict[str, Any]]:
  """Scores every pair of heads of different blocks, and each component of the earlier one.

  Returns:
    one object a pair and kind, the largest component first: `from` and `to` (as 7.3), `kind` (q, k
    or v), `score` of the whole matrices, `component_score` and `component` of the largest (from
    0, in the order of its singular values), and `component_scores` of all.
  """
  parts = {head.name: head.components() for head in heads}
  read = {(head.name, kind): _prepared(*head.reads(kind)) for head in heads for kind in KINDS}
  found = []
  for a in heads:
    _, values, right = parts[a.name]
    for b in heads:
      if b.layer <= a.layer:
        continue
      for kind in KINDS:
        matrix, size = read[b.name, kind]
        each = np.linalg.norm(right @ matrix, axis=1) / size if size else np.zeros(len(right))
        total = np.square(values).sum()
        whole = np.sqrt((np.square(values * each)).sum() / total) if total else 0.0
        best = int(each.argmax())
        found.append({"from": a.name, "to": b.name, "kind": kind, "score": float(whole),
                      "component": best, "component_score": float(each[best]),
                      "component_scores": [float(score) for score in each]})
  return sorted(found, key=lambda pair: -float(pair["component_score"]))


def composition(config: Config, params: Parameters, keep: int = 20) -> dict[str, Any]:
  """Lists the `keep` strongest pairs by component, those by whole matrices, and the baseline.

  The first of each kind is there beyond them.

  Raises:
    UserError: see `heads_of`.
  """
  pairs = scores(heads_of(config, params))
  by_matrix = sorted(pairs, key=lambda pair: -float(pair["score"]))
  return {"random": config.model.width ** -0.5, "by_component": _strongest(pairs, keep),
          "by_matrix": _strongest(by_matrix, keep)}


def without_component(config: Config, params: Parameters, head: str, component: int,
                      scale: float = 0.0) -> Parameters:
  """Copies parameters with a component of a head's output scaled: s_i u_i v_i^T, by default to 0.

  The head's output matrix becomes W_O + (scale - 1) W_O v_i v_i^T, which scales what it writes
  along v_i, and W_OV is its sum of components with s_i scaled.

  Args:
    head: layer and head, as in 7.3.
    component: from 0, in the order of the singular values.

  Raises:
    UserError: no such head or component; see `heads_of`.
  """
  found = {one.name: one for one in heads_of(config, params)}
  if head not in found:
    raise UserError(f"head={head}: the model has {', '.join(list(found)[:3])} to {list(found)[-1]}")
  chosen = found[head]
  _, _, right = chosen.components()
  if not 0 <= component < len(right):
    raise UserError(f"component={component}: head {head} has 0 to {len(right) - 1}")
  along = right[component]
  changed: Parameters = _as_arrays(params)
  layer = chosen.layer
  for stack in changed["stacks"].values():
    out = stack["attention"]["out"]["kernel"]
    if layer < len(out):
      kernel = np.asarray(out[layer, chosen.index], np.float64)
      out[layer, chosen.index] = kernel + (scale - 1) * np.outer(kernel @ along, along)
      break
    layer -= len(out)
  return changed


def _strongest(pairs: list[dict[str, Any]], keep: int) -> list[dict[str, Any]]:
  """The first `keep` pairs, and at least the first of every kind."""
  first = {kind: next((i for i, pair in enumerate(pairs) if pair["kind"] == kind), -1)
           for kind in KINDS}
  return [pair for i, pair in enumerate(pairs) if i < keep or i in first.values()]


def _prepared(first: Floats, second: Floats) -> tuple[Floats, float]:
  """[width, rank] that has the norms of x^T (first second) for every x, and |first second|_F."""
  _, triangle = np.linalg.qr(second.T)
  thin = first @ triangle.T
  return thin, float(np.linalg.norm(thin))


def _gain(stack: Parameters) -> Any:
  """Gains of the norm that attention reads, [layers, width]; ones where there is none."""
  for name in ("attention_norm", "norm"):
    if "scale" in stack.get(name, {}):
      scale = stack[name]["scale"]
      return scale if scale.ndim == 2 else scale[:, None]
  return np.ones((len(stack["attention"]["query"]["kernel"]), 1))


def _as_arrays(tree: Any) -> Any:
  if isinstance(tree, dict):
    return {name: _as_arrays(part) for name, part in tree.items()}
  return np.array(tree)


def _check(config: Config) -> None:
  model = config.model
  if not kind_of(model.kind).has_attention:
    raise UserError(f"config.model.kind={model.kind}: composition is of attention's heads, and it "
                    "has none")
  for field, allowed in (("attention", "softmax"), ("attention_values", "own"),
                         ("sigma_reparam", "none")):
    if getattr(model, field) != allowed:
      raise UserError(f"config.model.{field}={getattr(model, field)}: composition is of matrices "
                      f"that a head applies to the stream as they are, with {field}={allowed}")
  if model.attention_keys == "input":
    raise UserError("config.model.attention_keys=input: composition needs a matrix of the keys")
  block = traits.block(model.block)
  if block.norm_outputs != "maps" and block.norms == "required":
    raise UserError(f"config.model.block={model.block}: a norm stands between what a head writes "
                    "and the stream; composition is of blocks whose norms linear maps alone read")
