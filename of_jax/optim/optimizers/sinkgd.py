"""SinkGD: gradients normalised by several norms in turn; AdamW for what is no hidden matrix."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from of_jax.config import OptimConfig
from of_jax.optim.decay import add_decayed_weights
from of_jax.optim.layout import Layout
from of_jax.optim.matrices import leaves_like, of_each_matrix
from of_jax.optim.optimizers.muon import orthogonalize

FIELDS = {"norms": ("rows", "columns"), "norm_iterations": 5, "b1": 0.9, "b2": 0.999, "eps": 1e-8}

_AXES = {"rows": (2,), "columns": (1,), "matrix": (1, 2)}
_FLOOR = 1e-30


def normalize(matrices_BxRxC: jax.Array, norms: Sequence[str] = ("rows", "columns"),
              iterations: int | jax.Array = 5) -> jax.Array:
  """Brings each matrix onto the unit ball of every norm in turn, `iterations` times over.

  `rows`, `columns` and `matrix` divide each row, each column or the matrix by its RMS. `spectrum`
  makes all singular values equal, at RMS 1 over the entries: the Newton-Schulz form of
  (X X^T)^(-1/2) X (of_jax.optim.optimizers.muon), which SWAN uses (Ma et al. 2024, 2412.13148).
  With rows and columns this is the Sinkhorn-like iteration of Scetbon et al. 2025 (2502.06742,
  Alg. 3), whose fixed point has rows and columns of RMS 1; the last norm holds exactly, the others
  to the more digits the more iterations: the paper's 5 come near, 40 reach 1e-5 of it on random
  matrices.

  What is all zeros stays so; the result does not depend on the gradient's size.
  """
  x_BxRxC = matrices_BxRxC.astype(jnp.float32)
  # Brought to a largest entry of 1 first, so that no square overflows or vanishes.
  x_BxRxC = x_BxRxC / jnp.maximum(jnp.max(jnp.abs(x_BxRxC), (1, 2), keepdims=True), _FLOOR)

  def iterate(_: Any, x_BxRxC: jax.Array) -> jax.Array:
    for norm in norms:
      if norm == "spectrum":
        x_BxRxC = orthogonalize(x_BxRxC) * max(x_BxRxC.shape[1:]) ** 0.5
      else:
        square = jnp.mean(jnp.square(x_BxRxC), _AXES[norm], keepdims=True)
        x_BxRxC = x_BxRxC * jax.lax.rsqrt(jnp.maximum(square, _FLOOR))
    return x_BxRxC

  normalized: jax.Array = jax.lax.fori_loop(0, iterations, iterate, x_BxRxC)
  return normalized


def scale_by_mngd(norms: Sequence[str] = ("rows", "columns"), iterations: int | jax.Array = 5,
                  views: Any | None = None) -> optax.GradientTransformation:
  """Multi-normalised gradient descent (Scetbon et al. 2025, 2502.06742, Alg. 1), stateless.

  Every matrix becomes `normalize` of it. A NaN or an infinity makes NaN of its whole matrix.

  Raises:
    ValueError: a leaf that is no matrix, or a norm that there is not.
  """
  unknown = set(norms) - {*_AXES, "spectrum"}
  if unknown or not norms:
    raise ValueError(f"norms {tuple(norms)}: not a choice of {', '.join(_AXES)}, spectrum")
  return of_each_matrix("sinkgd", lambda g: normalize(g, norms, iterations), views)


def sinkgd(learning_rate: optax.ScalarOrSchedule, iterations: int | jax.Array = 5,
           norms: Sequence[str] = ("rows", "columns"), weight_decay: float = 0.0, b1: float = 0.9,
           b2: float = 0.999, eps: float = 1e-8, *, hidden: Any | None = None,
           mask: Any | None = None, views: Any | None = None) -> optax.GradientTransformation:
  """SinkGD (Scetbon et al. 2025, 2502.06742) for matrices, AdamW for the rest.

  w <- w - lr (normalize(g) + weight_decay w). Entries of the update have RMS 1, several times
  those of Adam's: other implementations take 0.05 of its learning rate for the matrices. The
  paper has no decay.

  Args:
    learning_rate: number or schedule, for both parts.
    iterations, norms: of `normalize`.
    weight_decay: decoupled, for both parts.
    b1, b2, eps: of AdamW.
    hidden, mask, views: as in of_jax.optim.muon.
  """

  def labels(params: optax.Params) -> Any:
    chosen = leaves_like(params, hidden) if hidden is not None else jax.tree.map(
        lambda leaf: leaf.ndim > 1, params)
    return jax.tree.map(lambda is_hidden: "mngd" if is_hidden else "adamw", chosen)

  return optax.chain(
      optax.partition({"mngd": scale_by_mngd(norms, iterations, views),
                       "adamw": optax.scale_by_adam(b1, b2, eps)}, labels),
      add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds SinkGD for the hidden matrices; only the leaves that the layout names decay."""
  assert (optim.norms is not None and optim.norm_iterations is not None and optim.b1 is not None
          and optim.b2 is not None and optim.eps is not None), "resolve the config first"
  return sinkgd(learning_rate, optim.norm_iterations, optim.norms, layout.weight_decay, optim.b1,
                optim.b2, optim.eps, hidden=layout.hidden_matrices(), mask=layout.decays,
                views=layout.views)
