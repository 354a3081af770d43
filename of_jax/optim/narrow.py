"""Moments kept in bfloat16: half the memory of an optimiser's state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class NarrowState(NamedTuple):
  """State of `narrow`.

  Attributes:
    inner: the inner state, its moments in bfloat16.
    steps: number of steps taken so far.
  """

  steps: jax.Array
  inner: optax.OptState


def narrow(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """Keeps the state of `inner` in bfloat16 between steps, as far as it is like the parameters.

  A step computes in float32 and rounds at its end, up or down at random with such odds that the
  mean is kept. To the nearest, an average would stand still: at b2 0.999 a step moves a second
  moment by at most a thousandth of itself or of g^2, and bfloat16's neighbours lie up to 1 / 128
  apart. What is drawn is a function of the step and the leaf, so that a resumed run repeats it.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params: optax.Params) -> optax.OptState:
    return NarrowState(jnp.zeros([], jnp.int32), _moments(
        inner.init(params), params, lambda leaf, _: leaf.astype(jnp.bfloat16)))

  def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None,
             **extra: Any) -> tuple[optax.Updates, optax.OptState]:
    wide = _moments(state.inner, updates, lambda leaf, _: leaf.astype(jnp.float32))
    updates, wide = inner.update(updates, wide, params, **extra)
    steps = optax.safe_increment(state.steps)
    key = jax.random.fold_in(jax.random.key(0), steps)
    return updates, NarrowState(steps, _moments(
        wide, updates, lambda leaf, i: round_at_random(leaf, jax.random.fold_in(key, i))))

  return optax.GradientTransformationExtraArgs(init, update)


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 to a neighbouring bfloat16, with such odds that the mean is kept.

  bfloat16 is the upper half of a float32: a random lower half is added, and what it carries over
  is kept.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  carried = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  rounded = jax.lax.bitcast_convert_type(carried & jnp.uint32(0xFFFF0000), jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _moments(state: Any, like: Any, change: Callable[[jax.Array, int], jax.Array]) -> Any:
  """Applies `change(leaf, its number)` to the leaves of a state that are like a parameter."""
  shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
  leaves, tree = jax.tree_util.tree_flatten_with_path(state)

  def is_moment(path: tuple[Any, ...], leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) and any(
        shapes.get(path[start:]) == leaf.shape for start in range(len(path)))

  return jax.tree.unflatten(tree, [
      change(leaf, i) if is_moment(path, leaf) else leaf for i, (path, leaf) in enumerate(leaves)])
