"""Muon: orthogonalised momentum for hidden matrices, AdamW for everything else."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from of_jax.config import OptimConfig
from of_jax.optim.decay import add_decayed_weights
from of_jax.optim.layout import Layout
from of_jax.optim.matrices import MatrixView, leaves_like, views_like

# The first four are the authors' own, the AdamW ones those of their example for other leaves.
FIELDS = {"momentum": 0.95, "nesterov": True, "newton_schulz_steps": 5, "muon_scale": "width",
          "b1": 0.9, "b2": 0.95, "eps": 1e-10}

# Of the quintic a s + b s^3 + c s^5: slope at 0 as large as lets singular values stay near 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_FLOOR = 1e-7


def orthogonalize(matrices_BxRxC: jax.Array, steps: int | jax.Array = 5) -> jax.Array:
  """Brings the singular values of each matrix near 1 and keeps its singular vectors.

  X <- X / |X|; then `steps` times X <- a X + (b A + c A^2) X with A = X X^T, on the side that is
  smaller. After 5 steps a singular value that was above 0.05 of the norm lies in [0.5, 1.5].
  In float32, on every platform; the authors work in bfloat16.

  Source: Jordan et al. 2024, github.com/KellerJordan/Muon.
  """
  a, b, c = _QUINTIC
  x_BxRxC = matrices_BxRxC.astype(jnp.float32)
  tall = x_BxRxC.shape[1] > x_BxRxC.shape[2]
  x_BxRxC = x_BxRxC.swapaxes(1, 2) if tall else x_BxRxC
  norm = jnp.sqrt(jnp.sum(jnp.square(x_BxRxC), (1, 2), keepdims=True))
  x_BxRxC /= norm + _FLOOR

  def iterate(_: Any, x_BxRxC: jax.Array) -> jax.Array:
    gram = jnp.matmul(x_BxRxC, x_BxRxC.swapaxes(1, 2), precision="highest")
    polynomial = b * gram + c * jnp.matmul(gram, gram, precision="highest")
    return a * x_BxRxC + jnp.matmul(polynomial, x_BxRxC, precision="highest")

  found: jax.Array = jax.lax.fori_loop(0, steps, iterate, x_BxRxC)
  return found.swapaxes(1, 2) if tall else found


def accumulate(updates: optax.Updates, trace: optax.Updates, momentum: float | jax.Array,
               nesterov: bool) -> tuple[optax.Updates, optax.Updates]:
  """Updates `scale_by_muon`'s momentum; returns the matrix to orthogonalise and the new trace."""
  trace = optax.tree.update_moment(updates, trace, momentum, 1)
  return (optax.tree.update_moment(updates, trace, momentum, 1) if nesterov else trace), trace


def scale_by_muon(momentum: float = 0.95, nesterov: bool = True, steps: int | jax.Array = 5,
                  scale: Literal["width", "rms"] = "width", views: Any | None = None
                  ) -> optax.GradientTransformation:
  """Orthogonalised momentum of matrices, without the learning rate.

  m <- momentum m + (1 - momentum) g; u = momentum m + (1 - momentum) g with Nesterov, else m.
  This is the authors' momentum; optax.contrib.muon corrects both terms for their bias, which
  weighs them otherwise in the first steps. Then orthogonalize(u), times sqrt(max(1, out / in))
  (`width`, the authors'), or times 0.2 sqrt(max(in, out)) (`rms`, Liu et al. 2025, 2502.16982,
  whose entries are as large as those of Adam's update).

  A gradient of zeros leaves the momentum's direction; while there is none, the update is 0. Below
  a norm of about 1e-7 the update shrinks with the gradient. A NaN makes NaN of its whole matrix.

  Raises:
    ValueError: a leaf that is no matrix.
  """

  def init(params: optax.Params) -> optax.OptState:
    for view in jax.tree.leaves(views_like(params, views)):
      if not view.is_matrix:
        raise ValueError(f"muon is for matrices, not for an array of shape {view.shape}")
    return optax.TraceState(optax.tree.zeros_like(params))

  def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
             ) -> tuple[optax.Updates, optax.OptState]:
    del params
    accumulated, trace = accumulate(updates, state.trace, momentum, nesterov)

    def step(u: jax.Array, view: MatrixView) -> jax.Array:
      factor = (max(1.0, view.columns / view.rows) ** 0.5 if scale == "width"
                else 0.2 * max(view.rows, view.columns) ** 0.5)
      return view.join(factor * orthogonalize(view.split(u), steps)).astype(u.dtype)

    return (jax.tree.map(step, accumulated, views_like(updates, views)),
            optax.TraceState(trace))

  return optax.GradientTransformation(init, update)


def muon(learning_rate: optax.ScalarOrSchedule, momentum: float = 0.95, nesterov: bool = True,
         weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-10, *,
         steps: int | jax.Array = 5, scale: Literal["width", "rms"] = "width",
         hidden: Any | None = None, mask: Any | None = None, views: Any | None = None
         ) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024, github.com/KellerJordan/Muon) with AdamW for the rest.

  w <- w - lr (u + weight_decay w), see `scale_by_muon`.

  Args:
    learning_rate: number or schedule, for both parts.
    momentum, nesterov, steps, scale: of `scale_by_muon`.
    weight_decay: decoupled, for both parts.
    b1, b2, eps: of AdamW; the defaults are the authors'.
    hidden: tree of bools like the parameters, true for matrices that Muon shall move. Default:
      all arrays of two axes or more. The authors give embeddings, unembedding, gains and biases
      to AdamW.
    mask: tree of bools, which leaves decay; default all.
    views: as in of_jax.optim.adamp.
  """

  def labels(params: optax.Params) -> Any:
    chosen = leaves_like(params, hidden) if hidden is not None else jax.tree.map(
        lambda leaf: leaf.ndim > 1, params)
    return jax.tree.map(lambda is_hidden: "muon" if is_hidden else "adamw", chosen)

  return optax.chain(
      optax.partition({"muon": scale_by_muon(momentum, nesterov, steps, scale, views),
                       "adamw": optax.scale_by_adam(b1, b2, eps)}, labels),
      add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds Muon for the hidden matrices; only the leaves that the layout names decay."""
  assert (optim.momentum is not None and optim.nesterov is not None and optim.b1 is not None
          and optim.b2 is not None and optim.eps is not None and optim.muon_scale is not None
          and optim.newton_schulz_steps is not None), "resolve the config first"
  return muon(learning_rate, optim.momentum, optim.nesterov, layout.weight_decay, optim.b1,
              optim.b2, optim.eps, steps=optim.newton_schulz_steps, scale=optim.muon_scale,
              hidden=layout.hidden_matrices(), mask=layout.decays, views=layout.views)
