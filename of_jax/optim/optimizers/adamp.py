"""AdamP: Adam without the radial part of scale-invariant weights' updates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from of_jax.config import OptimConfig
from of_jax.optim.layout import Layout
from of_jax.optim.matrices import views_like
from of_jax.optim.moments import averaged_weight
from of_jax.optim.radial import add_decay, channel_views, remove_radial

FIELDS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1, "nesterov": False}
IS_ADAM = True


def scale_by_adamp(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, delta: float = 0.1,
                   wd_ratio: float = 0.1, nesterov: bool = False, weight_decay: float = 0.0,
                   mask: Any | None = None, views: Any | None = None
                   ) -> optax.GradientTransformation:
  """Direction of Adam, projected, plus the weight decay that the projection decides.

  m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; u = m_hat / (sqrt(v_hat) + eps), with Nesterov
  b1 m + (1 - b1) g in place of m; see of_jax.optim.radial for the projection of u and for r; out
  comes u + weight_decay r w. (Heo et al. 2021, 2006.08217, Alg. 2.)

  A gradient with a NaN or an infinity makes NaN of what it touches, as in Adam; a wrapper such as
  optax.apply_if_finite skips such steps.
  """

  def init(params: optax.Params) -> optax.OptState:
    return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params),
                                  optax.tree.zeros_like(params))

  def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
             ) -> tuple[optax.Updates, optax.OptState]:
    if params is None:
      raise ValueError("adamp needs the parameters: update(gradients, state, params)")
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)
    count = optax.safe_increment(state.count)
    c1, c2 = averaged_weight(b1, count), averaged_weight(b2, count)
    first = optax.tree.update_moment(updates, mu, b1, 1) if nesterov else mu

    def direction(m: jax.Array, v: jax.Array) -> jax.Array:
      return ((m / c1) / (jnp.sqrt(v / c2) + eps)).astype(m.dtype)

    directions = jax.tree.map(direction, first, nu)
    projected = jax.tree.map(
        lambda u, g, w, view: remove_radial(u, g, w, view, delta, wd_ratio, eps),
        directions, updates, params, views_like(updates, views))
    return add_decay(projected, params, mask, weight_decay), optax.ScaleByAdamState(
        count, mu, nu)

  return optax.GradientTransformation(init, update)


def adamp(learning_rate: optax.ScalarOrSchedule = 1e-3, b1: float = 0.9, b2: float = 0.999,
          eps: float = 1e-8, weight_decay: float = 0.0, delta: float = 0.1, wd_ratio: float = 0.1,
          nesterov: bool = False, *, mask: Any | None = None, views: Any | None = None
          ) -> optax.GradientTransformation:
  """AdamP (Heo et al. 2021, 2006.08217, Alg. 2), as clovaai/AdamP 0.3.0 has it.

  w <- w (1 - lr weight_decay r) - lr u, see `scale_by_adamp`: r is wd_ratio for a matrix that is
  found to be scale-invariant, and 1 for others.

  Args:
    learning_rate: number or schedule.
    b1, b2, eps: Adam's.
    weight_decay: decoupled; multiplied by the learning rate alone.
    delta: threshold of the test for scale invariance.
    wd_ratio: share of the decay that scale-invariant matrices keep.
    nesterov: look ahead along the momentum.
    mask: tree of bools like the parameters, which leaves decay; default all.
    views: of_jax.optim.matrices.views of the parameters, whose columns are the output channels.
      Default: an array of two axes or more is [..., in, out], batched over what leads; the
      authors' channel is the first axis of PyTorch's (out, in).
  """
  return optax.chain(
      scale_by_adamp(b1, b2, eps, delta, wd_ratio, nesterov, weight_decay, mask, views),
      optax.scale_by_learning_rate(learning_rate))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds AdamP for the layout's matrices; only the leaves that the layout names decay."""
  assert (optim.b1 is not None and optim.b2 is not None and optim.eps is not None
          and optim.delta is not None and optim.wd_ratio is not None
          and optim.nesterov is not None), "resolve the config first"
  return adamp(learning_rate, optim.b1, optim.b2, optim.eps, layout.weight_decay, optim.delta,
               optim.wd_ratio, optim.nesterov, mask=layout.decays, views=channel_views(layout))
