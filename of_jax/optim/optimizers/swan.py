"""SWAN: gradients with normed rows and a flat spectrum, no state; Adam for the rest."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from of_jax.config import OptimConfig
from of_jax.optim.decay import add_decayed_weights
from of_jax.optim.layout import Layout
from of_jax.optim.matrices import leaves_like, of_each_matrix

# The steps are this project's choice: the authors' number is not known.
FIELDS = {"whitening_steps": 10, "swan_scale": 0.05, "b1": 0.9, "b2": 0.999, "eps": 1e-8}

_LEAST_STD, _FLOOR = 1e-8, 1e-30
# Rounding makes some eigenvalues of a singular matrix negative, and those the iteration blows up.
_RIDGE = 2e-7


def norm_rows(matrices_BxRxC: jax.Array) -> jax.Array:
  """GradNorm: (g - mean) / std over the inputs of each output, which are the rows of (out, in).

  Whether the authors' rows are outputs is not established; theirs are PyTorch's kernels. Here
  kernels are [in, out], so that each column is normed.
  """
  x_BxRxC = matrices_BxRxC.astype(jnp.float32)
  # Brought to a largest entry of 1 an output first, so that no square overflows or vanishes.
  x_BxRxC /= jnp.maximum(jnp.max(jnp.abs(x_BxRxC), 1, keepdims=True), _FLOOR)
  x_BxRxC -= jnp.mean(x_BxRxC, 1, keepdims=True)
  std = jnp.sqrt(jnp.mean(jnp.square(x_BxRxC), 1, keepdims=True))
  return x_BxRxC / jnp.maximum(std, _LEAST_STD)


def whiten(matrices_BxRxC: jax.Array, steps: int | jax.Array = 10) -> jax.Array:
  """GradWhitening: (G G^T)^(-1/2) G on the smaller side, whose singular values are 1.

  The coupled iteration Y <- Y (3I - Z Y) / 2, Z <- (3I - Z Y) Z / 2 from Y = G G^T / |G G^T| and
  Z = I: without the division it diverges. Singular values are 1 to 1e-4 after 10 steps where the
  largest is 10 times the smallest, after 15 to 1e-3 where it is 100 times it; what is smaller than
  a thousandth of the largest is float32's rounding, and stays small.
  """
  x_BxRxC = matrices_BxRxC.astype(jnp.float32)
  tall = x_BxRxC.shape[1] > x_BxRxC.shape[2]
  x_BxRxC = x_BxRxC.swapaxes(1, 2) if tall else x_BxRxC

  def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")

  gram = product(x_BxRxC, x_BxRxC.swapaxes(1, 2))
  size = jnp.sqrt(jnp.sum(jnp.square(gram), (1, 2), keepdims=True))
  identity = jnp.broadcast_to(jnp.eye(gram.shape[1], dtype=gram.dtype), gram.shape)

  def iterate(_: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    y, z = pair
    correction = 0.5 * (3 * identity - product(z, y))
    return product(y, correction), product(correction, z)

  start = gram / jnp.maximum(size, _FLOOR) + _RIDGE * identity
  _, root = jax.lax.fori_loop(0, steps, iterate, (start, identity))
  found: jax.Array = product(root, x_BxRxC) * jax.lax.rsqrt(jnp.maximum(size, _FLOOR))
  return found.swapaxes(1, 2) if tall else found


def transform(matrices_BxRxC: jax.Array, steps: int | jax.Array = 10) -> jax.Array:
  """Norms the rows, whitens, and gives the result the Frobenius norm that it had in between.

  Singular values all become sqrt(m n / min(m, n)) for m x n matrices. It is one alternation of
  multi-normalised descent (`sinkgd` with norms of rows and spectrum): for no more outputs than
  inputs that is its fixed point already, for more it is not.
  """
  normed_BxRxC = norm_rows(matrices_BxRxC)
  white_BxRxC = whiten(normed_BxRxC, steps)
  before, after = (jnp.sqrt(jnp.sum(jnp.square(x), (1, 2), keepdims=True))
                   for x in (normed_BxRxC, white_BxRxC))
  return white_BxRxC * (before / jnp.maximum(after, _FLOOR))


def scale_by_swan(steps: int | jax.Array = 10, views: Any | None = None
                  ) -> optax.GradientTransformation:
  """Replaces every matrix by `transform` of it, without state.

  A gradient of zeros gives zeros, a row of zeros stays one. A NaN makes NaN of its whole matrix.

  Raises:
    ValueError: a leaf that is no matrix.
  """
  return of_each_matrix("swan", lambda g: transform(g, steps), views)


def swan(learning_rate: optax.ScalarOrSchedule, steps: int | jax.Array = 10,
         scale: float | jax.Array = 0.05, weight_decay: float = 0.0, b1: float = 0.9,
         b2: float = 0.999, eps: float = 1e-8, *, hidden: Any | None = None,
         mask: Any | None = None, views: Any | None = None) -> optax.GradientTransformation:
  """SWAN (Ma et al. 2024, 2412.13148) for matrices, AdamW for the rest.

  w <- w - lr (scale transform(g) + weight_decay w).

  Args:
    learning_rate: number or schedule, for both parts.
    steps: of `whiten`.
    scale: of the matrices' updates.
    weight_decay: decoupled, for both parts.
    b1, b2, eps: of AdamW.
    hidden, mask, views: as in of_jax.optim.muon.
  """

  def labels(params: optax.Params) -> Any:
    chosen = leaves_like(params, hidden) if hidden is not None else jax.tree.map(
        lambda leaf: leaf.ndim > 1, params)
    return jax.tree.map(lambda is_hidden: "swan" if is_hidden else "adamw", chosen)

  return optax.chain(
      optax.partition({"swan": optax.chain(scale_by_swan(steps, views), optax.scale(scale)),
                       "adamw": optax.scale_by_adam(b1, b2, eps)}, labels),
      add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds SWAN for the hidden matrices; only the leaves that the layout names decay."""
  assert (optim.whitening_steps is not None and optim.swan_scale is not None
          and optim.b1 is not None and optim.b2 is not None and optim.eps is not None
          ), "resolve the config first"
  return swan(learning_rate, optim.whitening_steps, optim.swan_scale, layout.weight_decay,
              optim.b1, optim.b2, optim.eps, hidden=layout.hidden_matrices(), mask=layout.decays,
              views=layout.views)
