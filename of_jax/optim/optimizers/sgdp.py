"""SGDP: momentum SGD without the radial part of scale-invariant weights' updates."""

from typing import Any

import jax
import optax

from of_jax.config import OptimConfig
from of_jax.optim.layout import Layout
from of_jax.optim.matrices import views_like
from of_jax.optim.radial import Projected, add_decay, channel_views, remove_radial

FIELDS = {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "eps": 1e-8, "delta": 0.1,
          "wd_ratio": 0.1}


def scale_by_sgdp(momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False,
                  eps: float = 1e-8, delta: float = 0.1, wd_ratio: float = 0.1,
                  weight_decay: float = 0.0, mask: Any | None = None, views: Any | None = None
                  ) -> optax.GradientTransformation:
  """Momentum, projected, plus the weight decay that the projection decides.

  m <- momentum m + (1 - dampening) g, d = m or with Nesterov g + momentum m; see
  of_jax.optim.radial for the projection of d and for r; out comes
  d + weight_decay r / (1 - momentum) w. (Heo et al. 2021, 2006.08217, Alg. 1.) The first gradient
  is dampened too, unlike torch.optim.SGD's. Without Nesterov m keeps what the projection leaves of
  it: the authors' code projects its buffer in place there, where the paper's m stays whole. After
  100 steps at momentum 0.9 that is 7e-4 of a weight.

  A gradient with a NaN or an infinity makes NaN of what it touches.
  """

  def init(params: optax.Params) -> optax.OptState:
    return optax.TraceState(optax.tree.zeros_like(params))

  def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
             ) -> tuple[optax.Updates, optax.OptState]:
    if params is None:
      raise ValueError("sgdp needs the parameters: update(gradients, state, params)")
    trace = jax.tree.map(lambda g, m: (momentum * m + (1 - dampening) * g).astype(m.dtype),
                         updates, state.trace)
    directions = jax.tree.map(lambda g, m: (g + momentum * m).astype(m.dtype),
                              updates, trace) if nesterov else trace
    projected = jax.tree.map(
        lambda u, g, w, view: remove_radial(u, g, w, view, delta, wd_ratio, eps),
        directions, updates, params, views_like(updates, views))
    if not nesterov:
      trace = jax.tree.map(lambda part: part.update, projected,
                           is_leaf=lambda node: isinstance(node, Projected))
    return (add_decay(projected, params, mask, weight_decay / (1 - momentum)),
            optax.TraceState(trace))

  return optax.GradientTransformation(init, update)


def sgdp(learning_rate: optax.ScalarOrSchedule, momentum: float = 0.0, dampening: float = 0.0,
         weight_decay: float = 0.0, nesterov: bool = False, eps: float = 1e-8, delta: float = 0.1,
         wd_ratio: float = 0.1, *, mask: Any | None = None, views: Any | None = None
         ) -> optax.GradientTransformation:
  """SGDP (Heo et al. 2021, 2006.08217, Alg. 1), as clovaai/AdamP 0.3.0 has it.

  w <- w (1 - lr weight_decay r / (1 - momentum)) - lr d, see `scale_by_sgdp`: r is wd_ratio for a
  matrix that is found to be scale-invariant, and 1 for others.

  Args:
    learning_rate: number or schedule.
    momentum, dampening, nesterov: of the sum of gradients.
    weight_decay: decoupled; over 1 - momentum, by which momentum enlarges the steps.
    eps: floor of the norms.
    delta, wd_ratio, mask, views: as in of_jax.optim.adamp.
  """
  return optax.chain(
      scale_by_sgdp(momentum, dampening, nesterov, eps, delta, wd_ratio, weight_decay, mask, views),
      optax.scale_by_learning_rate(learning_rate))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds SGDP for the layout's matrices; only the leaves that the layout names decay."""
  assert (optim.momentum is not None and optim.dampening is not None
          and optim.nesterov is not None and optim.eps is not None and optim.delta is not None
          and optim.wd_ratio is not None), "resolve the config first"
  return sgdp(learning_rate, optim.momentum, optim.dampening, layout.weight_decay, optim.nesterov,
              optim.eps, optim.delta, optim.wd_ratio, mask=layout.decays,
              views=channel_views(layout))
