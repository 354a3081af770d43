"""AdaFactor without the parameter-scaled learning rate: Adam with a rank-1 second moment.

Optax's own is not used on stacked layers: it factors over the two largest axes, whichever they
are, and clips the RMS of all layers together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from of_jax.config import OptimConfig
from of_jax.optim.decay import add_decayed_weights
from of_jax.optim.layout import Layout
from of_jax.optim.matrices import MatrixView, views_like

FIELDS = {"b1": 0.9, "decay_exponent": 0.8, "update_clip": 1.0}

_FLOOR = 1e-30


class AdaFactorState(NamedTuple):
  """State of `scale_by_adafactor`.

  Attributes:
    steps: number of steps so far.
    mu: average of the clipped updates, like the parameters.
    rows, columns: mean squares of each row and column, [batch, rows] and [batch, columns]; of a
      vector, `columns` holds all its squares and `rows` their mean, which is not used.
  """

  steps: jax.Array
  mu: Any
  rows: Any
  columns: Any


def scale_by_adafactor(b1: float = 0.9, decay_exponent: float = 0.8, update_clip: float = 1.0,
                       views: Any | None = None) -> optax.GradientTransformation:
  """Direction of AdaFactor, without the learning rate (Shazeer & Stern 2018, 1804.04235).

  Alg. 4 and 5: d = 1 - t^-decay_exponent; r <- d r + (1 - d) mean over columns of (g^2 + 1e-30),
  c likewise over rows; v = r c^T / mean(r); u = g / sqrt(v), over max(1, RMS(u) / update_clip) for
  each matrix; m <- b1 m + (1 - b1) u without bias correction, as the update. A vector keeps all its
  squares.

  A gradient of zeros gives an update of zeros. A NaN makes NaN of its whole matrix.
  """

  def init(params: optax.Params) -> optax.OptState:
    seen = views_like(params, views)
    return AdaFactorState(
        jnp.zeros([], jnp.int32), optax.tree.zeros_like(params),
        jax.tree.map(lambda x, view: jnp.zeros((view.batch, view.rows), jnp.float32), params, seen),
        jax.tree.map(lambda x, view: jnp.zeros((view.batch, view.columns), jnp.float32), params,
                     seen))

  def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
             ) -> tuple[optax.Updates, optax.OptState]:
    del params
    count = optax.safe_increment(state.steps)
    decay = 1 - count.astype(jnp.float32) ** -decay_exponent
    seen = views_like(updates, views)

    def averages(axis: int) -> Any:
      def of_leaf(g: jax.Array, view: MatrixView, old: jax.Array) -> jax.Array:
        square = jnp.square(view.split(g.astype(jnp.float32))) + _FLOOR
        average: jax.Array = decay * old + (1 - decay) * jnp.mean(square, axis)
        return average
      return of_leaf

    rows = jax.tree.map(averages(2), updates, seen, state.rows)
    columns = jax.tree.map(averages(1), updates, seen, state.columns)

    def direction(g: jax.Array, view: MatrixView, row: jax.Array, column: jax.Array) -> jax.Array:
      # One after the other: their product could leave the range of float32.
      u_BxRxC = view.split(g.astype(jnp.float32)) * jax.lax.rsqrt(column)[:, None, :]
      if view.is_matrix:
        u_BxRxC *= jax.lax.rsqrt(row / jnp.mean(row, 1, keepdims=True))[:, :, None]
      rms = jnp.sqrt(jnp.mean(jnp.square(u_BxRxC), (1, 2), keepdims=True))
      return view.join(u_BxRxC / jnp.maximum(1, rms / update_clip)).astype(g.dtype)

    directions = jax.tree.map(direction, updates, seen, rows, columns)
    mu = optax.tree.update_moment(directions, state.mu, b1, 1)
    return mu, AdaFactorState(count, mu, rows, columns)

  return optax.GradientTransformation(init, update)


def adafactor(learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, decay_exponent: float = 0.8,
              update_clip: float = 1.0, weight_decay: float = 0.0, *, mask: Any | None = None,
              views: Any | None = None) -> optax.GradientTransformation:
  """AdaFactor (Shazeer & Stern 2018, 1804.04235) as He et al. 2024 (2405.19279) use it.

  w <- w - lr (m + weight_decay w), see `scale_by_adafactor`: no learning rate by the parameter's
  norm, no relative step size.

  Args:
    learning_rate: number or schedule.
    b1, decay_exponent, update_clip: of `scale_by_adafactor`.
    weight_decay: decoupled.
    mask, views: as in of_jax.optim.adamp.
  """
  return optax.chain(scale_by_adafactor(b1, decay_exponent, update_clip, views),
                     add_decayed_weights(weight_decay, mask),
                     optax.scale_by_learning_rate(learning_rate))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds AdaFactor for the layout's matrices; only the leaves that the layout names decay."""
  assert (optim.b1 is not None and optim.decay_exponent is not None
          and optim.update_clip is not None), "resolve the config first"
  return adafactor(learning_rate, optim.b1, optim.decay_exponent, optim.update_clip,
                   layout.weight_decay, mask=layout.decays, views=layout.views)
