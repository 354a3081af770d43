"""Projection of AdamP and SGDP: removes the radial part of a scale-invariant weight's update.

Heo et al. 2021, "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
Weights" (2006.08217), Alg. 1 and 2, as the authors' code has it (clovaai/AdamP 0.3.0). The loss
does not depend on the size of a scale-invariant weight, so its gradient is orthogonal to it;
momentum is not, and makes the weight grow, which shrinks the effective step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from of_jax.optim.layout import Layout
from of_jax.optim.matrices import MatrixView, leaves_like


class Projected(NamedTuple):
  """Update and decay of a weight behind the projection.

  Attributes:
    update: the given update, or what is left of it.
    decay: like the weight's matrices but of size 1 elsewhere: wd_ratio where projected, else 1.
  """

  update: jax.Array
  decay: jax.Array


def remove_radial(update: jax.Array, gradient: jax.Array, weight: jax.Array, view: MatrixView,
                  delta: float | jax.Array, wd_ratio: float | jax.Array, eps: float | jax.Array
                  ) -> Projected:
  """Removes the radial part of an update where the weight is found to be scale-invariant.

  A matrix counts as scale-invariant by output channel if, for all its channels,
  |cos(gradient, weight)| < delta / sqrt(size of a channel); failing that, as a whole if the same
  holds of the whole matrix. The raw gradient is asked and not the update, at every step anew.
  A gradient of zeros has the cosine 0 and passes. Vectors and scalars are left alone.

  Args:
    update, gradient, weight: arrays of the view's shape.
    view: columns are the channels.
    delta, wd_ratio, eps: as the authors'; eps is the floor of the norms.
  """
  ones = view.spread(jnp.ones((view.batch,), update.dtype))
  if not view.is_matrix:
    return Projected(update, ones)
  u, g, w = (view.split(x.astype(jnp.float32)) for x in (update, gradient, weight))
  by_channel = _orthogonal(g, w, (1,), view.rows, delta, eps)
  as_a_whole = _orthogonal(g, w, (1, 2), view.rows * view.columns, delta, eps)
  projected = jnp.where(by_channel, _tangential(u, w, (1,), eps),
                        jnp.where(as_a_whole, _tangential(u, w, (1, 2), eps), u))
  decay = jnp.where(by_channel | as_a_whole, wd_ratio, 1.0)[:, 0, 0]
  return Projected(view.join(projected).astype(update.dtype),
                   view.spread(decay).astype(update.dtype))


def add_decay(projected: Any, params: Any, mask: Any | None, weight_decay: float | jax.Array
              ) -> Any:
  """Adds weight decay to a tree of Projected, update + weight_decay k r w, k by leaf.

  Args:
    projected: as remove_radial gives it, leaf by leaf.
    params: of which optax.masked may have left some out.
    mask: k, of the whole tree; true is 1, false or 0 no decay; default 1.
  """

  def add(part: Projected, weight: jax.Array, k: float) -> jax.Array:
    decay = (weight_decay * k * part.decay * weight).astype(weight.dtype)
    decayed: jax.Array = part.update + decay if k else part.update
    return decayed

  return jax.tree.map(add, projected, params, leaves_like(params, mask, True),
                      is_leaf=lambda node: isinstance(node, Projected))


def channel_views(layout: Layout) -> Any:
  """Views of the layout with the authors' channels in the columns.

  A table's channel is the row of a token or a position: PyTorch's embeddings are (vocab, width),
  and the authors' channel is the first axis.
  """
  return jax.tree.map(lambda role, view: view.transposed() if role == "embedding" else view,
                      layout.roles, layout.views)


def _norm(x_BxRxC: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x_BxRxC), axes, keepdims=True))


def _orthogonal(g_BxRxC: jax.Array, w_BxRxC: jax.Array, axes: tuple[int, ...], size: int,
                delta: float | jax.Array, eps: float | jax.Array) -> jax.Array:
  """Tells whether the largest |cosine| over all vectors along `axes` is small, [batch, 1, 1]."""
  norms = jnp.maximum(_norm(g_BxRxC, axes), eps) * jnp.maximum(_norm(w_BxRxC, axes), eps)
  cosine = jnp.abs(jnp.sum(g_BxRxC * w_BxRxC, axes, keepdims=True)) / norms
  small: jax.Array = jnp.max(cosine, (1, 2), keepdims=True) < delta / size ** 0.5
  return small


def _tangential(u_BxRxC: jax.Array, w_BxRxC: jax.Array, axes: tuple[int, ...],
                eps: float | jax.Array) -> jax.Array:
  unit_BxRxC = w_BxRxC / (_norm(w_BxRxC, axes) + eps)
  return u_BxRxC - unit_BxRxC * jnp.sum(unit_BxRxC * u_BxRxC, axes, keepdims=True)
