"""Width-transfer rules: initialisation, learning rate and decay by role and what grows with width.
"""

import dataclasses
from typing import Any

import jax

from of_jax.config import OptimConfig
from of_jax.optim import matrices

# Logical axes that are longer in a wider model; heads stay as they are, there are more of them.
_GROWING = ("embed", "heads", "mlp", "channel")


@dataclasses.dataclass(frozen=True)
class Factors:
  """Factors of a parameter against the base width.

  Attributes:
    init: of the initial standard deviation.
    learning_rate: of the rate.
    weight_decay: of the coefficient, which a step multiplies by the rate.
  """

  init: float = 1.0
  learning_rate: float = 1.0
  weight_decay: float = 1.0


def factors(optim: OptimConfig, roles: Any, axes: Any, shapes: Any) -> Any:
  """Factors of every parameter, a tree like them; m is their width over `optim.base_width`.

  `mup` is muP for Adam (Yang et al. 2022, 2203.03466, Table 3; d the fan-in of a matrix):

  | role | init (std) | learning rate | decay |
  |---|---|---|---|
  | hidden | m^-1/2, of d^-1/2 | 1 / m | m |
  | unembedding | 1 / m | 1 / m | m |
  | embedding, gain, norm, bias | 1 | 1 | 1 |

  Hidden are matrices that grow on both sides. Others of that role count as what they are like: with
  outputs alone that do not grow as the unembedding (W_down of a gated norm), else as the embedding
  (its W_up; the gate a head, a vector for each).

  So a step, which decays by rate x decay, takes the same share of a weight at every width: the
  authors' MuAdamW (microsoft/mup) multiplies the coefficient by what it divides the rate by. Their
  unembedding divides what it reads by m instead, with a rate and a decay of 1: the same function,
  update and share, of a matrix m times as large.

  The rule's attention logits q k / d differ from q k / sqrt(d) by a constant while heads grow with
  the width and the head dimension stays, which is how widths are to be compared here; heads of keys
  and values (`model.kv_heads`) grow as the others do.

  `mup_decay` adds the weight decay of Fan et al. 2025 (2510.15262): in the steady state the top
  singular value of a matrix goes like sqrt(lr / wd) d^(3/4), so at lr ~ 1/d the gain of a layer
  keeps its size if wd ~ sqrt(d). So hidden matrices have m^1/2 weight_decay, and a step decays
  them by m^-1/2 of what it does at the base width; vector-like parameters, for which we take the
  unembedding too, do not decay.
  """
  if optim.scaling == "none":
    return jax.tree.map(lambda role: Factors(), roles)
  assert optim.base_width is not None, "resolve the config first"
  m = width_of(axes, shapes) / optim.base_width
  table = {"hidden": Factors(m ** -0.5, 1 / m, m), "unembedding": Factors(1 / m, 1 / m, m)}

  def of(role: str, names: tuple[str, ...], leaf: Any) -> Factors:
    like = _like(names, leaf.shape) if role == "hidden" else role
    found = table.get(like, Factors())
    if optim.scaling == "mup_decay":
      return dataclasses.replace(found, weight_decay=m ** 0.5 if like == "hidden" else 0.0)
    return found

  return jax.tree.map(of, roles, axes, shapes)


def _like(axes: tuple[str, ...], shape: tuple[int, ...]) -> str:
  """Names the role that a parameter is like, by which of its sides grow with the width."""
  view = matrices.view(axes, shape)
  inputs, outputs = (any(axes[i] in _GROWING for i in side)
                     for side in (view.row_axes, view.column_axes))
  return "embedding" if not inputs else "hidden" if outputs else "unembedding"


def width_of(axes: Any, shapes: Any) -> int:
  """Number of neurons of the residual stream: the size of the axis `embed`.

  Raises:
    ValueError: no parameter has that axis, or two differ in it.
  """
  sizes = {size for names, leaf in zip(
      jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple)), jax.tree.leaves(shapes))
      for name, size in zip(names, leaf.shape) if name == "embed"}
  if len(sizes) != 1:
    raise ValueError(f"the axis embed has the sizes {sorted(sizes)}, so there is no one width")
  width: int = sizes.pop()
  return width


def scale_init(optim: OptimConfig, params: Any, roles: Any, axes: Any) -> Any:
  """Multiplies fresh parameters by their factors of the initial standard deviation."""
  return jax.tree.map(lambda w, found: w if found.init == 1 else w * found.init,
                      params, factors(optim, roles, axes, params))
