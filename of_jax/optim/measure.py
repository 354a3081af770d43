"""Optimiser telemetry: what one step does to the parameters, by role and layer.

Enters: a step's updates, the parameters before it, and the state after it. Leaves: role -> metric
-> float32 values, one a layer of the stacks from the bottom, then one for the role's parameters
outside of them, together. A layer's value is over all of the role's entries in it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from of_jax.optim.layout import Layout
from of_jax.optim.matrices import MatrixView
from of_jax.optim.preconditioners import Stacks, Vectors, condition_number, quotients

Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Metric:
  """One optimiser metric.

  Attributes:
    id, formula, unit, range, reference: for people. u is the update, w the weight before it, v the
      second moment.
    finish: sums over a layer's entries, [layers] each, and the learning rate -> [layers].
  """

  id: str
  formula: str
  unit: str
  range: str
  reference: str
  finish: Callable[[Sums, jax.Array], jax.Array]


_HEO = "Heo et al. 2021, 2006.08217, Sec. 2"
_LYLE = "Lyle et al. 2024, 2407.01800, Sec. 3"

METRICS: dict[str, Metric] = {metric.id: metric for metric in (
    Metric("update_kurtosis", "mean(u^4) / mean(u^2)^2", "ratio", "1 to entries; gaussian 3",
           "He et al. 2024, 2405.19279, Sec. 5",
           lambda s, _: s["count"] * s["u4"] / jnp.square(s["u2"])),
    Metric("update_rms_ratio", "rms(u) / rms(w)", "ratio", "0 and above", _HEO,
           lambda s, _: s["max_u"] * jnp.sqrt(s["u2"]) / jnp.sqrt(s["w2"])),
    Metric("nu_tail", "max(v) / mean(v)", "ratio", "1 to entries", "this project",
           lambda s, _: s["max_v"] * s["count"] / s["v"]),
    Metric("effective_lr", "learning rate / |w|", "1 / weight", "0 and above", _LYLE,
           lambda s, rate: rate / jnp.sqrt(s["w2"])),
    Metric("effective_lr_squared", "learning rate / |w|^2", "1 / weight^2", "0 and above", _LYLE,
           lambda s, rate: rate / s["w2"]),
    Metric("radial_share", "sum over matrices of (u.w)^2 / |w|^2, over sum of |u|^2", "share",
           "0 to 1", _HEO, lambda s, _: s["radial"] / s["u2"]),
    Metric("projection_factor", "mean over matrices of |w at init| / |w before projection|",
           "ratio", "0 and above", _LYLE, lambda s, _: s["factor"] / s["factors"]),
    Metric("projection_factor_writers", "the same mean over matrices that write to the residual "
           "stream, whose function it changes", "ratio", "0 and above", _LYLE,
           lambda s, _: s["writer"] / s["writers"]),
    Metric("preconditioner_condition", "largest over matrices and sides of max(e) / min(e), e the "
           "factor's eigenvalues: q^T L q in the basis in use, or as of the last refresh",
           "ratio", "1 to 2^23 / side, where float32 ends",
           "Gupta et al. 2018, 1802.09568; Vyas et al. 2024, 2409.11321",
           lambda s, _: s["condition"]),
)}


def measure_step(layout: Layout, params: Any, updates: Any, state: Any, rate: jax.Array
                 ) -> dict[str, dict[str, jax.Array]]:
  """Every metric of one step; NaN where undefined.

  `nu_tail` is there for optimisers whose state has a second moment `nu` of each entry,
  `projection_factor` for projected roles, `preconditioner_condition` where factors precondition.
  The effective learning rates take the schedule's rate times the role's factor, and the norm over
  all of a role's entries in the layer.

  Args:
    layout: of the parameters.
    params: before the step.
    updates: what is added to them.
    state: of the optimiser, after the step.
    rate: the schedule's.
  """
  named = dict(_named(params))
  nu, factors = _of_state(state, "nu", named), _of_state(state, "factors", named)
  conditions = _conditions(state, named)
  moves, roles, views, axes, multipliers = (
      dict(_named(tree)) for tree in (updates, layout.roles, layout.views, layout.axes,
                                      layout.multipliers))
  groups: dict[str, dict[Any, list[Any]]] = {}
  for path in named:
    stack = path[:2] if "layers" in axes[path] else None
    groups.setdefault(roles[path], {}).setdefault(stack, []).append(path)
  measured = {}
  for role, stacks in groups.items():
    # The stacks in their order, then what is outside of them.
    ordered = sorted(stacks, key=_place)
    parts = [_finish([(named[p], moves[p], nu.get(p), factors.get(p), conditions.get(p),
                       axes[p][-1:] == ("embed",), views[p]) for p in stacks[stack]],
                     rate * multipliers[stacks[stack][0]])
             for stack in ordered]
    common = set.intersection(*(set(part) for part in parts))
    measured[role] = {name: jnp.concatenate([part[name] for part in parts])
                      for name in METRICS if name in common}
  return measured


def _place(stack: tuple[Any, ...] | None) -> float:
  return float("inf") if stack is None else float(stack[1].key)


def _finish(leaves: list[tuple[Any, Any, Any, Any, Any, bool, MatrixView]], rate: jax.Array
            ) -> dict[str, jax.Array]:
  # Scaled by the largest entry, so that no fourth power can overflow or vanish.
  largest = jnp.max(jnp.stack([
      jnp.max(jnp.abs(view.split(u)), (1, 2)) for _, u, *_, view in leaves]), 0)
  scale = jnp.where(largest > 0, largest, 1)[:, None, None]
  total: Sums = {"max_u": scale[:, 0, 0]}

  def add(name: str, values: jax.Array) -> None:
    total[name] = total.get(name, jnp.zeros(())) + values

  for w, u, v, factor, condition, writes, view in leaves:
    w, u = (view.split(x.astype(jnp.float32)) for x in (w, u))
    u = u / scale
    norm = jnp.sum(jnp.square(w), (1, 2))
    add("count", jnp.full(norm.shape, float(view.rows * view.columns)))
    add("w2", norm)
    add("u2", jnp.sum(jnp.square(u), (1, 2)))
    add("u4", jnp.sum(jnp.square(jnp.square(u)), (1, 2)))
    along = jnp.square(jnp.sum(u * w, (1, 2))) / jnp.where(norm > 0, norm, 1)
    add("radial", along)
    if v is not None:
      v = view.split(v.astype(jnp.float32))
      add("v", jnp.sum(v, (1, 2)))
      total["max_v"] = jnp.maximum(total.get("max_v", jnp.zeros(())), jnp.max(v, (1, 2)))
    if factor is not None:
      add("factor", factor)
      add("factors", jnp.ones_like(factor))
    if factor is not None and writes:
      add("writer", factor)
      add("writers", jnp.ones_like(factor))
    if condition is not None:
      total["condition"] = jnp.maximum(total.get("condition", condition), condition)
  known = {"nu_tail": all(v is not None for _, _, v, *_ in leaves),
           "projection_factor": "factor" in total,
           "projection_factor_writers": "writer" in total,
           "preconditioner_condition": "condition" in total}
  found = {metric.id: metric.finish(total, rate) for metric in METRICS.values()
           if known.get(metric.id, True)}
  return {name: jnp.where(jnp.isfinite(value), value, jnp.nan) for name, value in found.items()}


def _named(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
  leaves: list[tuple[tuple[Any, ...], Any]] = jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda node: isinstance(node, tuple))
  return leaves


def _conditions(state: Any, params: dict[tuple[Any, ...], Any]) -> dict[tuple[Any, ...], jax.Array]:
  """Parameter -> [matrices], the largest condition number of a matrix's factors."""
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
  """The state's nodes of a kind under `attribute`, by the path of the parameter they belong to."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(
      state, is_leaf=lambda node: isinstance(node, (Stacks, Vectors))):
    if not isinstance(leaf, kind):
      continue
    for start, key in enumerate(path):
      if getattr(key, "name", None) == attribute and path[start + 1:] in params:
        found[path[start + 1:]] = leaf
  return found
