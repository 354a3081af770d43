"""Projection of Normalize-and-Project (NaP), around any optimiser.

Lyle et al. 2024, "Normalization and effective learning rates in reinforcement learning"
(2407.01800), Sec. 4: where a norm follows every matrix, the size of a matrix does not change the
function, only the effective learning rate; so after an optimiser step each matrix is scaled back to
the Frobenius norm that it had at initialisation, W <- W |W_0| / |W|.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from of_jax.optim.layout import Layout
from of_jax.optim.matrices import MatrixView, leaves_like, views_like

# What a leaf is to the projection: scaled to its own norm, by the writers' common factor, a gain
# or offset of a norm, or left alone.
Kind = Literal["own", "common", "gain", "none"]


class NaPState(NamedTuple):
  """State of `nap`.

  Attributes:
    steps: number of steps so far.
    norms: at init, [batch] a projected leaf: of its matrices, or of a norm's gain and offset
      together; MaskedNode elsewhere.
    common: at init, of all leaves with a common factor together.
    initial: what gains and offsets are drawn to, where they are.
    factors: like `norms`, and for leaves with a common factor too: what the last projection
      multiplied the leaf by.
    inner: the inner optimiser's.
  """

  steps: jax.Array
  norms: Any
  common: jax.Array
  initial: Any
  factors: Any
  inner: Any


def nap(inner: optax.GradientTransformation, every: int = 1, *,
        gains: Literal["keep", "joint", "decay"] = "keep", gain_decay: float = 0.99,
        kinds: Any | None = None, views: Any | None = None
        ) -> optax.GradientTransformationExtraArgs:
  """Projects the weights after every `every`-th step of the optimiser `inner`.

  A matrix whose norm at init was 0 is left alone. `count` and `every` follow the steps of this
  transformation: inside optax.MultiSteps, whole ones.

  Args:
    inner: must be given the parameters.
    every: steps between projections; the paper finds 1 and 1000 almost alike.
    gains: what becomes of a norm's gains s and offsets m (the paper's App. D). `keep`: nothing.
      `joint`: (s, m) is scaled back to its norm at init, sqrt(width) for s = 1 and m = 0, which
      with homogeneous activations keeps the function up to scale. `decay`: s becomes gain_decay s +
      (1 - gain_decay) s_0, and m likewise.
    gain_decay: for gains=decay; the share that is kept at each projection.
    kinds: tree of Kind like the parameters. Default: arrays of two axes or more are `own`, vectors
      are `gain`, of which those under one parent belong together. Leaves that are `common` are all
      multiplied by one factor, which brings the root of the sum of their squares back.
    views: as in of_jax.optim.adamp; layers are projected each to its own norm.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params: optax.Params) -> optax.OptState:
    return _initial_state(params, inner, _kinds(params, kinds), gains, views)

  def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None,
             **extra: Any) -> tuple[optax.Updates, optax.OptState]:
    if params is None:
      raise ValueError("nap needs the parameters: update(gradients, state, params)")
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    moved = optax.apply_updates(params, updates)
    count = optax.safe_increment(state.steps)
    due = count % every == 0
    chosen = _kinds(params, kinds)
    factors = _factors(state, chosen, _squares(moved, chosen, gains, views), gains, due)
    projected = jax.tree.map(partial(_projected, due, gain_decay), chosen, moved,
                             views_like(params, views), factors, state.initial)
    # What is left alone keeps the inner update's own bits.
    steps = jax.tree.map(
        lambda kind, new, old, step: step if kind == "none" or (kind == "gain" and gains == "keep")
        else new - old, chosen, projected, params, updates)
    return steps, NaPState(count, state.norms, state.common, state.initial, factors, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def kinds_by_role(layout: Layout, roles: Sequence[str], writers: Literal["own", "common"]) -> Any:
  """Finds how the projection treats each leaf of a layout: a tree of Kind like the parameters.

  Matrices of the given roles are `own`, leaves of the role `norm` are `gain`. With the writers in
  common, every array of the role hidden, embedding or bias whose last axis is the residual
  stream's is `common`, whatever the roles: the stream as a whole changes its scale, which the norms
  that read it take away, where one alone would change its weight against the others.
  """

  def kind(role: str, view: MatrixView, axes: tuple[str, ...]) -> Kind:
    if writers == "common" and axes[-1:] == ("embed",) and role in ("hidden", "embedding", "bias"):
      return "common"
    if role == "norm":
      return "gain"
    return "own" if role in roles and view.is_matrix else "none"

  return jax.tree.map(kind, layout.roles, layout.views, layout.axes)


def _initial_state(params: optax.Params, inner: optax.GradientTransformation, chosen: Any,
                   gains: str, views: Any | None) -> NaPState:
  sizes = _squares(params, chosen, gains, views)
  return NaPState(
      jnp.zeros([], jnp.int32),
      jax.tree.map(lambda kind, square: jnp.sqrt(square) if _has_norm(kind, gains)
                   else optax.MaskedNode(), chosen, sizes),
      jnp.sqrt(_total(chosen, sizes)),
      jax.tree.map(lambda kind, x: jnp.copy(x) if kind == "gain" and gains == "decay"
                   else optax.MaskedNode(), chosen, params),
      jax.tree.map(lambda kind, square: jnp.ones_like(square)
                   if kind == "common" or _has_norm(kind, gains) else optax.MaskedNode(),
                   chosen, sizes),
      inner.init(params))


def _kinds(params: optax.Params, kinds: Any | None) -> Any:
  if kinds is not None:
    return leaves_like(params, kinds)
  return jax.tree.map(lambda leaf: "own" if leaf.ndim > 1 else "gain" if leaf.ndim else "none",
                      params)


def _squares(params: optax.Params, chosen: Any, gains: str, views: Any | None) -> Any:
  """Sums of squares, [batch] a leaf; of a norm's gain and offset together if gains are joint."""
  own = jax.tree.map(_square, params, views_like(params, views))
  if gains != "joint":
    return own
  leaves, tree = jax.tree_util.tree_flatten_with_path(own)
  together: dict[Any, jax.Array] = {}
  pairs = list(zip(leaves, jax.tree.leaves(chosen)))
  for (path, square), kind in pairs:
    if kind == "gain":
      together[path[:-1]] = together.get(path[:-1], 0) + square
  return jax.tree.unflatten(tree, [together[path[:-1]] if kind == "gain" else square
                                   for (path, square), kind in pairs])


def _factors(state: NaPState, chosen: Any, sizes: Any, gains: str, due: jax.Array) -> Any:
  """Factors of this step's projection like NaPState.factors; the last ones while none is due."""
  common = _ratio(state.common, jnp.sqrt(_total(chosen, sizes)))

  def factor(kind: Kind, square: jax.Array, norm: Any, last: Any) -> Any:
    if kind == "common":
      return jnp.where(due, jnp.broadcast_to(common, square.shape), last)
    return (jnp.where(due, _ratio(norm, jnp.sqrt(square)), last) if _has_norm(kind, gains)
            else optax.MaskedNode())

  return jax.tree.map(factor, chosen, sizes, state.norms, state.factors)


def _projected(due: jax.Array, gain_decay: float, kind: Kind, w: jax.Array, view: MatrixView,
               factor: Any, initial: Any) -> jax.Array:
  """A leaf behind the projection: scaled, or moved towards its initial values, or as it was."""
  del kind
  if not isinstance(factor, optax.MaskedNode):
    return jnp.where(due, w * view.spread(factor).astype(w.dtype), w)
  if not isinstance(initial, optax.MaskedNode):
    return jnp.where(due, gain_decay * w + (1 - gain_decay) * initial, w).astype(w.dtype)
  return w


def _has_norm(kind: Kind, gains: str) -> bool:
  return kind == "own" or (kind == "gain" and gains == "joint")


def _square(x: jax.Array, view: MatrixView) -> jax.Array:
  return jnp.sum(jnp.square(view.split(x.astype(jnp.float32))), (1, 2))


def _total(chosen: Any, sizes: Any) -> jax.Array:
  parts = [jnp.sum(square) for kind, square in zip(jax.tree.leaves(chosen), jax.tree.leaves(sizes))
           if kind == "common"]
  return jnp.sum(jnp.stack(parts)) if parts else jnp.zeros([], jnp.float32)


def _ratio(target: jax.Array, norm: jax.Array) -> jax.Array:
  usable = (target > 0) & (norm > 0)
  return jnp.where(usable, target / jnp.where(usable, norm, 1), 1)
