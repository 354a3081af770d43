"""Width-transfer rules: initialisation, learning rate and weight decay by parameter role."""

import dataclasses
from typing import Any

import jax

from of_jax.config import OptimConfig
from of_jax.config.roles import ROLES


@dataclasses.dataclass(frozen=True)
class Factors:
  """Factors of a role against the base width.

  Attributes:
    init: of the initial standard deviation.
    learning_rate: of the rate.
    weight_decay: of the coefficient, which a step multiplies by the rate.
  """

  init: float = 1.0
  learning_rate: float = 1.0
  weight_decay: float = 1.0


def factors(optim: OptimConfig, axes: Any, shapes: Any) -> dict[str, Factors]:
  """Factors by role at the parameters' width; m is the width over `optim.base_width`.

  `mup` is muP for Adam (Yang et al. 2022, 2203.03466, Table 3; d the fan-in of a matrix):

  | role | init (std) | learning rate | decay |
  |---|---|---|---|
  | hidden | m^-1/2, of d^-1/2 | 1 / m | m |
  | unembedding | 1 / m | 1 / m | m |
  | embedding, gain, norm, bias | 1 | 1 | 1 |

  So a step, which decays by rate x decay, takes the same share of a weight at every width: the
  authors' MuAdamW (microsoft/mup) multiplies the coefficient by what it divides the rate by. Their
  unembedding divides what it reads by m instead, with a rate and a decay of 1: the same function,
  update and share, of a matrix m times as large.

  The rule's attention logits q k / d differ from q k / sqrt(d) by a constant while heads grow with
  the width and the head dimension stays, which is how widths are to be compared here.

  `mup_decay` adds the weight decay of Fan et al. 2025 (2510.15262): in the steady state the top
  singular value of a matrix goes like sqrt(lr / wd) d^(3/4), so at lr ~ 1/d the gain of a layer
  keeps its size if wd ~ sqrt(d). So hidden matrices have m^1/2 weight_decay, and a step decays
  them by m^-1/2 of what it does at the base width; vector-like parameters, for which we take the
  unembedding too, do not decay.
  """
  if optim.scaling == "none":
    return {role: Factors() for role in ROLES}
  assert optim.base_width is not None, "resolve the config first"
  m = width_of(axes, shapes) / optim.base_width
  table = {"hidden": Factors(m ** -0.5, 1 / m, m), "unembedding": Factors(1 / m, 1 / m, m)}
  found = {role: table.get(role, Factors()) for role in ROLES}
  if optim.scaling == "mup_decay":
    found = {role: dataclasses.replace(
        factor, weight_decay=m ** 0.5 if role == "hidden" else 0.0)
        for role, factor in found.items()}
  return found


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
  """Multiplies fresh parameters by their role's factor of the initial standard deviation."""
  found = factors(optim, axes, params)
  return jax.tree.map(
      lambda role, w: w if found[role].init == 1 else w * found[role].init, roles, params)
