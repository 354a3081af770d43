"""Optimiser telemetry: what one step does to the parameters, by role and layer.

Enters: a step's updates, the parameters before it, and the state after it. Leaves: role -> metric
-> float32 values, one a layer of the stacks from the bottom, then one for the role's parameters
outside of them, together. A layer's value is over all of the role's entries in it.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from of_jax.optim.layout import Layout
from of_jax.optim.matrices import MatrixView
from of_jax.optim.preconditioners import Stacks, Vectors, condition_number, quotients
from of_jax.xla import placement
from of_jax.xla.reductions import as_bits, as_float, fold, plus

Sums = dict[str, jax.Array]

# Declared as a family of metrics is, see of_jax.config.declared_metrics. g is the gradient before
# clipping, u the update, w the weight before it, v the second moment after it.
KIND = "parameters"
SITES = ()
EVERY = 0
METRICS = {
    "gradient_kurtosis": (
        "full", "mean(g^4) / mean(g^2)^2", "ratio", "1 to entries; gaussian 3", "this project"),
    "gradient_rms": ("full", "sqrt(mean(g^2))", "1 / weight", "0 and above", "this project"),
    "update_kurtosis": (
        "full", "mean(u^4) / mean(u^2)^2", "ratio", "1 to entries; gaussian 3",
        "He et al. 2024, 2405.19279, Sec. 5"),
    "update_rms_ratio": (
        "full", "rms(u) / rms(w)", "ratio", "0 and above", "Heo et al. 2021, 2006.08217, Sec. 2"),
    "nu_tail": ("full", "max(v) / mean(v)", "ratio", "1 to entries", "this project"),
    "effective_lr": (
        "full", "learning rate / |w|", "1 / weight", "0 and above",
        "Lyle et al. 2024, 2407.01800, Sec. 3"),
    "effective_lr_squared": (
        "full", "learning rate / |w|^2", "1 / weight^2", "0 and above",
        "Lyle et al. 2024, 2407.01800, Sec. 3"),
    "radial_share": (
        "full", "sum over matrices of (u.w)^2 / |w|^2, over sum of |u|^2", "share", "0 to 1",
        "Heo et al. 2021, 2006.08217, Sec. 2"),
    "projection_factor": (
        "full", "mean over matrices of |w at init| / |w before projection|", "ratio",
        "0 and above", "Lyle et al. 2024, 2407.01800, Sec. 3"),
    "projection_factor_writers": (
        "full", "the same mean over matrices that write to the residual stream, whose function it "
        "changes", "ratio", "0 and above", "Lyle et al. 2024, 2407.01800, Sec. 3"),
    "preconditioner_condition": (
        "full", "largest over matrices and sides of max(e) / min(e), e the factor's eigenvalues: "
        "q^T L q in the basis in use, or as of the last refresh", "ratio",
        "1 to 2^23 / side, where float32 ends",
        "Gupta et al. 2018, 1802.09568; Vyas et al. 2024, 2409.11321"),
}
# Numbers below float32's smallest normal one, 2^-126, are lost, which this bears to 1e-6.
_SMALLEST = 2.0 ** -104
# Entries of a block, of which four arrays lie in a core's cache.
_BLOCK = 2 ** 17
# What is the largest over a layer's entries, and not a sum.
_LARGEST = ("max_g", "max_u", "max_v", "condition")
# Sums in units of the largest entries: sum -> largest -> power.
_UNITS = {"g2": {"max_g": 2}, "g4": {"max_g": 4}, "u2": {"max_u": 2}, "u4": {"max_u": 4},
          "uw": {"max_u": 1}, "radial": {"max_u": 2}}
# Sums over a layer's entries, [layers] each, and the learning rate -> [layers].
_FINISH: dict[str, Callable[[Sums, jax.Array], jax.Array]] = {
    "gradient_kurtosis": lambda s, _: _kurtosis(s, "g"),
    "gradient_rms": lambda s, _: _size_of(s, "g") * jnp.sqrt(s["g2"] / s["count"]),
    "update_kurtosis": lambda s, _: _kurtosis(s, "u"),
    "update_rms_ratio": lambda s, _: (
        _size_of(s, "u") * jnp.sqrt(s["u2"]) / jnp.sqrt(_sure(s, "w2"))),
    "nu_tail": lambda s, _: s["max_v"] * s["count"] / _sure(s, "v"),
    "effective_lr": lambda s, rate: rate / jnp.sqrt(_sure(s, "w2")),
    "effective_lr_squared": lambda s, rate: rate / _sure(s, "w2"),
    "radial_share": lambda s, _: s["radial"] / s["u2"],
    "projection_factor": lambda s, _: s["factor"] / s["factors"],
    "projection_factor_writers": lambda s, _: s["writer"] / s["writers"],
    "preconditioner_condition": lambda s, _: s["condition"],
}


def _sure(s: Sums, name: str) -> jax.Array:
  """Takes a sum of squares; NaN where their mean is too small for float32."""
  return jnp.where(s[name] >= _SMALLEST * s["count"], s[name], jnp.nan)


def _size_of(s: Sums, name: str) -> jax.Array:
  """Takes the largest |entry| of g or u; NaN where it is too small for float32, but 0 where all
  are 0."""
  size = s[f"max_{name}"]
  return jnp.where((size >= _SMALLEST) | (size == 0), size, jnp.nan)


def _kurtosis(s: Sums, name: str) -> jax.Array:
  kurtosis = s["count"] * s[f"{name}4"] / jnp.square(s[f"{name}2"])
  return jnp.where(s[f"max_{name}"] >= _SMALLEST, kurtosis, jnp.nan)


def measure_step(layout: Layout, params: Any, gradients: Any, updates: Any, state: Any,
                 rate: jax.Array, ids: Collection[str] = tuple(METRICS)
                 ) -> dict[str, dict[str, jax.Array]]:
  """Measures one step, by role and metric; NaN where undefined.

  `nu_tail` is there for optimisers whose state has a second moment `nu` of each entry,
  `projection_factor` for projected roles, `preconditioner_condition` where factors precondition.
  The effective learning rates take the schedule's rate times the role's factor, and the norm over
  all of a role's entries in the layer.

  Args:
    layout: of the parameters.
    params: before the step.
    gradients: before clipping.
    updates: what is added to them.
    state: of the optimiser, after the step.
    rate: the schedule's.
    ids: the metrics that are kept.
  """
  named = dict(_named(params))
  nu = {path: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for path, leaf in _of_state(state, "nu", named).items()}
  factors = _of_state(state, "factors", named)
  conditions = _conditions(state, named)
  slopes, moves, roles, views, axes, multipliers = (
      dict(_named(tree)) for tree in (gradients, updates, layout.roles, layout.views, layout.axes,
                                      layout.multipliers))
  groups: dict[str, dict[Any, list[Any]]] = {}
  for path in named:
    stack = path[:2] if "layers" in axes[path] else None
    groups.setdefault(roles[path], {}).setdefault(stack, []).append(path)
  measured = {}
  for role, stacks in groups.items():
    # The stacks in their order, then what is outside of them.
    ordered = sorted(stacks, key=_place)
    parts = [_finish([_Leaf(named[p], slopes[p], moves[p], nu.get(p), factors.get(p),
                            conditions.get(p), axes[p][-1:] == ("embed",), views[p])
                      for p in stacks[stack]], rate * multipliers[stacks[stack][0]])
             for stack in ordered]
    common = set.intersection(*(set(part) for part in parts))
    measured[role] = {name: jnp.concatenate([part[name] for part in parts])
                      for name in METRICS if name in common and name in ids}
  return measured


def _place(stack: tuple[Any, ...] | None) -> float:
  return float("inf") if stack is None else float(stack[1].key)


class _Leaf(NamedTuple):
  """One parameter in one stack; what an optimiser does not have is None.

  `writes`: to the residual stream.
  """

  weight: jax.Array
  gradient: jax.Array
  update: jax.Array
  nu: jax.Array | None
  factor: jax.Array | None
  condition: jax.Array | None
  writes: bool
  view: MatrixView


def _finish(leaves: list[_Leaf], rate: jax.Array) -> dict[str, jax.Array]:
  total = _together([_sums(leaf) for leaf in leaves])
  known = {"nu_tail": all(leaf.nu is not None for leaf in leaves),
           "projection_factor": "factor" in total,
           "projection_factor_writers": "writer" in total,
           "preconditioner_condition": "condition" in total}
  found = {id_: finish(total, rate) for id_, finish in _FINISH.items() if known.get(id_, True)}
  return {name: jnp.where(jnp.isfinite(value), value, jnp.nan) for name, value in found.items()}


def _sums(leaf: _Leaf) -> Sums:
  """Sums over one parameter, [layers] each, that are added to its role's."""
  view = leaf.view
  given = {"w": leaf.weight, "g": leaf.gradient, "u": leaf.update, "v": leaf.nu}
  split = {name: view.split(x.astype(jnp.float32)) for name, x in given.items() if x is not None}
  blocks = _blocks(view)
  if blocks is None:
    sums = jax.vmap(_sums_of_matrix)(split)
  else:
    # One after the other, so that memory is read once: later sums find a block in the cache.
    sums_LxN = jax.tree.map(
        lambda sums: sums.reshape(view.batch, blocks),
        jax.lax.map(_sums_of_matrix, {name: x.reshape(-1, view.rows // blocks, view.columns)
                                      for name, x in split.items()}))
    sums = _together([{name: sums_L[:, n] for name, sums_L in sums_LxN.items()}
                      for n in range(blocks)])
  norm, product = sums["w2"], sums.pop("uw")
  sums["count"] = jnp.full(norm.shape, float(view.rows * view.columns))
  # A weight of 0 has no direction, one whose squares are lost an unknown part in the update's.
  sums["radial"] = jnp.where((norm == 0) & (product == 0), 0,
                             jnp.square(product) / _sure(sums, "w2"))
  if leaf.factor is not None:
    sums |= {"factor": leaf.factor, "factors": jnp.ones_like(leaf.factor)}
  if leaf.factor is not None and leaf.writes:
    sums |= {"writer": leaf.factor, "writers": jnp.ones_like(leaf.factor)}
  if leaf.condition is not None:
    sums["condition"] = leaf.condition
  return sums


def _sums_of_matrix(arrays: dict[str, jax.Array]) -> Sums:
  """Numbers of one matrix [rows, columns]: of w, g, u, and v where there is one."""
  w, g, u = (arrays[name] for name in "wgu")
  # Scaled by the largest entry, so that no fourth power can overflow or vanish.
  max_g, max_u = _size(g), _size(u)
  in_g, in_u = (1 / jnp.where(size > 0, size, 1) for size in (max_g, max_u))
  sums = {"max_g": max_g, "max_u": max_u,
          "w2": _sum(jnp.square, w),
          "g2": _sum(lambda g: jnp.square(g * in_g), g),
          "g4": _sum(lambda g: jnp.square(jnp.square(g * in_g)), g),
          "u2": _sum(lambda u: jnp.square(u * in_u), u),
          "u4": _sum(lambda u: jnp.square(jnp.square(u * in_u)), u),
          "uw": _sum(lambda u, w: u * in_u * w, u, w)}
  if "v" in arrays:
    sums |= {"v": _sum(lambda v: v, arrays["v"]), "max_v": _size(arrays["v"])}
  return sums


def _together(parts: list[Sums]) -> Sums:
  """Adds up several parts, each in units of its own largest entry, in units of all's."""
  total = {name: functools.reduce(jnp.maximum, [part[name] for part in parts if name in part])
           for name in _LARGEST if any(name in part for part in parts)}
  for part in parts:
    for name, values in part.items():
      if name in _LARGEST:
        continue
      for size, power in _UNITS.get(name, {}).items():
        values *= (part[size] / jnp.where(total[size] > 0, total[size], 1)) ** power
      total[name] = total.get(name, jnp.zeros(())) + values
  return total


def _blocks(view: MatrixView) -> int | None:
  """Counts the blocks of rows that a matrix is measured in; None for all matrices at once."""
  is_small = view.batch * view.rows * view.columns <= _BLOCK
  if is_small or placement.platform() != "cpu" or placement.devices() > 1:
    return None
  return next(n for n in range(1, view.rows + 1)
              if view.rows % n == 0 and view.rows // n * view.columns <= _BLOCK or n == view.rows)


def _sum(each: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
  """Sums each(*arrays), arrays [rows, columns]."""
  return jnp.sum(_fold(lambda total, *parts: plus(total, each(*parts)), 0., *arrays))


def _size(x: jax.Array) -> jax.Array:
  """Finds the largest |entry| of [rows, columns]; NaN if there is one."""
  return as_float(jnp.max(
      _fold(lambda largest, piece: jnp.maximum(largest, as_bits(piece)), 0, x)))


def _fold(step: Callable[..., jax.Array], start: float, *arrays: jax.Array) -> jax.Array:
  # Rows in pieces, if no device has but some of them.
  return fold(step, start, *arrays, axis=0, most=16 if placement.devices() == 1 else 1)


def _named(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
  leaves: list[tuple[tuple[Any, ...], Any]] = jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda node: isinstance(node, tuple))
  return leaves


def _conditions(state: Any, params: dict[tuple[Any, ...], Any]) -> dict[tuple[Any, ...], jax.Array]:
  """Maps each parameter to [matrices], the largest condition number of a matrix's factors."""
  found: dict[tuple[Any, ...], jax.Array] = {}
  nodes = {attribute: {path: node.sides for path, node in _of_state(
      state, attribute, params, (Stacks, Vectors)).items()}
      for attribute in ("factors", "bases", "eigenvalues")}
  for path, factors in nodes["factors"].items():
    if path in nodes["eigenvalues"]:
      eigenvalues = nodes["eigenvalues"][path]
    else:
      eigenvalues = quotients(factors, nodes["bases"][path])
    if eigenvalues:
      found[path] = jnp.max(jnp.stack([condition_number(e) for e in eigenvalues.values()]), 0)
  return found


def _of_state(state: Any, attribute: str, params: dict[tuple[Any, ...], Any],
              kind: Any = jax.Array) -> dict[tuple[Any, ...], Any]:
  """Finds the state's nodes of a kind under `attribute`, by the path of their parameter."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(
      state, is_leaf=lambda node: isinstance(node, (Stacks, Vectors))):
    if not isinstance(leaf, kind):
      continue
    for start, key in enumerate(path):
      if getattr(key, "name", None) == attribute and path[start + 1:] in params:
        found[path[start + 1:]] = leaf
  return found
