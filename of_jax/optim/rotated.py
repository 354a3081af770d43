"""Adam in the eigenbasis of Shampoo's factors (Vyas et al. 2024, 2409.11321, Alg. 3).

The second moment is a strategy: whole in SOAP, rows times columns in rotated AdaFactor. The rest
follows the authors' code (github.com/nikhilvyas/SOAP, soap.py, a1e5535), where it and the paper
differ too.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from of_jax.optim import preconditioners
from of_jax.optim.matrices import leaves_like
from of_jax.optim.moments import averaged_weight
from of_jax.optim.preconditioners import BySide, Sides, Stacks, Vectors

Scalar = float | jax.Array


class SecondMoment(Protocol):
  """Strategy for the average of squared rotated gradients; `kept` is one parameter's part of it."""

  def init(self, sides: Sides, dtype: Any) -> Any:
    """Zeros, in the form that the strategy keeps."""

  def update(self, kept: Any, squares: jax.Array, sides: Sides, b2: Scalar) -> Any:
    """Updates the average, b2 kept + (1 - b2) squares, for squares [batch, *sizes]."""

  def dense(self, kept: Any, sides: Sides) -> jax.Array:
    """Second moment of every entry, [batch, *sizes]."""

  def permute(self, kept: Any, orders: BySide, sides: Sides) -> Any:
    """Reorders the average after the columns of the bases changed places."""


class WholeMoment:
  """Second moment of every entry, in an array of the parameter's shape."""

  def init(self, sides: Sides, dtype: Any) -> Any:
    return jnp.zeros(sides.shape, dtype)

  def update(self, kept: Any, squares: jax.Array, sides: Sides, b2: Scalar) -> Any:
    return b2 * kept + (1 - b2) * sides.join(squares)

  def dense(self, kept: Any, sides: Sides) -> jax.Array:
    return sides.split(kept)

  def permute(self, kept: Any, orders: BySide, sides: Sides) -> Any:
    return sides.join(preconditioners.permute(sides.split(kept), orders))


class RankOneMoment:
  """Second moment of rank one, V = r c^T / mean(r), r and c the means of rows and columns.

  Only these means are kept (Shazeer & Stern 2018, 1804.04235, eq. 4). A vector is one row, so its
  V is whole.
  """

  def init(self, sides: Sides, dtype: Any) -> Any:
    return Vectors({str(i): jnp.zeros((sides.batch, n), dtype)
                      for i, n in enumerate(sides.sizes)})

  def update(self, kept: Any, squares: jax.Array, sides: Sides, b2: Scalar) -> Any:
    def mean(side: str) -> jax.Array:
      others = tuple(axis for axis in range(1, squares.ndim) if axis != int(side) + 1)
      return jnp.mean(squares, others)

    return Vectors({side: b2 * old + (1 - b2) * mean(side) for side, old in kept.sides.items()})

  def dense(self, kept: Any, sides: Sides) -> jax.Array:
    # Each factor but the last is divided by its mean, which is every side's: the mean of all.
    result = jnp.ones((sides.batch, *[1] * len(sides.sizes)), kept.sides["0"].dtype)
    for side, mean in kept.sides.items():
      shape = [sides.batch, *[1] * len(sides.sizes)]
      shape[int(side) + 1] = -1
      if int(side) < len(sides.sizes) - 1:
        overall = jnp.mean(mean, -1, keepdims=True)
        mean = jnp.where(overall > 0, mean / jnp.where(overall > 0, overall, 1), 0)
      result = result * mean.reshape(shape)
    return result

  def permute(self, kept: Any, orders: BySide, sides: Sides) -> Any:
    return Vectors({side: preconditioners.permute(mean, {"0": orders[side]})
                      if side in orders else mean for side, mean in kept.sides.items()})


class RotatedState(NamedTuple):
  """State of `scale_by_rotated_adam`.

  Attributes:
    calls: number of calls so far. The authors' step is one less: their first call only starts the
      bases.
    mu: first moment, shaped like the parameters, in the coordinates of `bases`.
    nu: second moment in the same coordinates.
    factors: moving averages of G G^T and G^T G.
    bases: the orthogonal matrices Q; identities before the first call.
  """

  calls: jax.Array
  mu: Any
  nu: Any
  factors: Any
  bases: Any


class _Decays(NamedTuple):
  """Decays of the first moment, the second moment and the factors."""

  b1: Scalar
  b2: Scalar
  beta: Scalar


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """One parameter's part of a step."""

  sides: Sides
  mu: jax.Array
  nu: Any
  factors: BySide
  bases: BySide


def scale_by_rotated_adam(
    b1: Scalar, b2: Scalar, shampoo_beta: Scalar | None, eps: Scalar,
    precondition_frequency: int | jax.Array, max_precond_dim: int, second_moment: SecondMoment, *,
    merge_dims: bool = False, views: Any | None = None, fixed_axes: Any | None = None
) -> optax.GradientTransformation:
  """Adam on G' = Q_L^T G Q_R, rotated back.

  Call 0 sets L = (1 - beta) G G^T and R = (1 - beta) G^T G, takes their eigenvectors as Q_L and
  Q_R, and returns zeros. Call t = 1, 2, ...:

    M' <- b1 M' + (1 - b1) G',  V <- b2 V + (1 - b2) G'^2
    update = sqrt(1 - b2^t) / (1 - b1^t) Q_L (M' / (sqrt(V) + eps)) Q_R^T
    L <- beta L + (1 - beta) G G^T,  R <- beta R + (1 - beta) G^T G
    if t is a multiple of the frequency: sort the columns of Q by q^T L q, and V with them;
      Q <- QR(L Q).Q; M' moves to the new coordinates.

  So a gradient never meets a basis made from it, eps is not corrected for bias, and V is permuted
  but not rotated. A side that has no factor keeps its coordinates; a vector, having none at all,
  gets Adam with this eps and its first call skipped.

  Arguments are those of of_jax.optim.soap; everything is computed in float32, or float64 for
  float64 gradients, whatever the accelerator's default. A NaN in a gradient stays in the state.
  """
  decays = _Decays(b1, b2, b2 if shampoo_beta is None else shampoo_beta)
  plan = preconditioners.planner(views, fixed_axes, max_precond_dim, merge_dims)

  def init(params: Any) -> RotatedState:
    def tree(make: Any) -> Any:
      return jax.tree_util.tree_map_with_path(
          lambda path, p: make(plan(path, p), compute_dtype(p)), params)

    return RotatedState(
        jnp.zeros((), jnp.int32), tree(lambda sides, dtype: jnp.zeros(sides.shape, dtype)),
        tree(second_moment.init), tree(lambda sides, dtype: sides.squares(dtype, _zeros)),
        tree(lambda sides, dtype: sides.squares(dtype, jnp.eye)))

  def update(updates: Any, state: RotatedState, params: Any = None) -> tuple[Any, RotatedState]:
    del params
    structure: Any
    paths, structure = jax.tree_util.tree_flatten_with_path(updates)
    old = [_Leaf(plan(path, g), mu, nu, factors.sides, bases.sides)
           for (path, g), mu, nu, factors, bases in zip(
               paths, *(structure.flatten_up_to(part) for part in state[1:]))]
    t = state.calls
    correction = (jnp.sqrt(averaged_weight(b2, jnp.maximum(t, 1)))
                  / averaged_weight(b1, jnp.maximum(t, 1)))

    stepped = [_step(t, correction, decays, eps, second_moment, g, leaf)
               for (_, g), leaf in zip(paths, old)]
    moved, new = [u for u, _ in stepped], [leaf for _, leaf in stepped]
    bases, mu, nu = _refresh(t, precondition_frequency, new, second_moment)
    whole = structure.unflatten
    return whole(moved), RotatedState(
        optax.safe_increment(t), whole(mu), whole(nu),
        whole([Stacks(leaf.factors) for leaf in new]), whole([Stacks(q) for q in bases]))

  return optax.GradientTransformation(init, update)


def _step(t: jax.Array, correction: jax.Array, decays: _Decays, eps: Scalar,
          second_moment: SecondMoment, g: jax.Array, leaf: _Leaf) -> tuple[jax.Array, _Leaf]:
  """One parameter's update and its part of the state, in the bases that it had before."""
  b1, b2, beta = decays
  sides, dtype = leaf.sides, compute_dtype(g)
  x = sides.split(g.astype(dtype))
  # Call 0 comes before the first basis: what it computes in the meantime is dropped.
  rotated = jnp.where(t > 0, preconditioners.rotate(x, leaf.bases), 0)
  mu = b1 * leaf.mu + (1 - b1) * sides.join(rotated)
  nu = second_moment.update(leaf.nu, jnp.square(rotated), sides, b2)
  scaled = sides.split(mu) / (jnp.sqrt(second_moment.dense(nu, sides)) + eps)
  moved = correction * sides.join(preconditioners.rotate_back(scaled, leaf.bases))
  factors = {side: beta * leaf.factors[side] + (1 - beta) * product
             for side, product in preconditioners.products(x, sides).items()}
  # 0 / 0 where eps is 0.
  return (jnp.where(t > 0, moved, 0).astype(g.dtype),
          _Leaf(sides, mu.astype(dtype), nu, factors, leaf.bases))


def _refresh(t: jax.Array, every: int | jax.Array, leaves: list[_Leaf],
             second_moment: SecondMoment) -> tuple[list[BySide], list[jax.Array], list[Any]]:
  """Renews bases and the moments in them: by eigh on call 0, by a power step when due."""
  factors = [leaf.factors for leaf in leaves]
  kept = ([leaf.bases for leaf in leaves], [leaf.mu for leaf in leaves],
          [leaf.nu for leaf in leaves])

  def keep() -> Any:
    return kept

  def start() -> Any:
    return preconditioners.eigenbases(factors), *kept[1:]

  def turn() -> Any:
    bases, orders = preconditioners.power_step(factors, kept[0])
    mu = [leaf.sides.join(preconditioners.rotate(preconditioners.rotate_back(
        leaf.sides.split(leaf.mu), leaf.bases), new)) for leaf, new in zip(leaves, bases)]
    nu = [second_moment.permute(leaf.nu, order, leaf.sides)
          for leaf, order in zip(leaves, orders)]
    return bases, mu, nu

  branch = jnp.where(t == 0, 1, jnp.where(t % every == 0, 2, 0))
  result: tuple[list[BySide], list[jax.Array], list[Any]] = jax.lax.switch(
      branch, (keep, start, turn))
  return result


class StepThenDecayState(NamedTuple):
  """State of `step_then_decay`: the number of calls so far."""

  calls: jax.Array


def step_then_decay(learning_rate: optax.ScalarOrSchedule, weight_decay: Scalar,
                    mask: Any | None = None, multipliers: Any | None = None
                    ) -> optax.GradientTransformation:
  """Takes the step, w <- w - lr u, then decays its result, w <- w - lr k weight_decay w.

  The other order of decoupled decay differs by lr^2 weight_decay u. Call 0 does not decay, since
  `scale_by_rotated_adam` moves nothing then.

  Args:
    learning_rate: a number, or a schedule of the calls so far.
    weight_decay: as above.
    mask: k, a tree like the parameters or a prefix of it, or a function of them that gives one;
      true is 1, false or 0 no decay; default 1.
    multipliers: tree like the parameters of numbers by which the caller multiplies what comes out,
      as a rate of their own: what decays is the weight behind that step. Default 1.
  """

  def init(params: Any) -> StepThenDecayState:
    del params
    return StepThenDecayState(jnp.zeros((), jnp.int32))

  def update(updates: Any, state: StepThenDecayState, params: Any = None
             ) -> tuple[Any, StepThenDecayState]:
    if params is None:
      raise ValueError(optax.base.NO_PARAMS_MSG)
    rate = learning_rate(state.calls) if callable(learning_rate) else learning_rate
    decay = jnp.where(state.calls > 0, rate * weight_decay, 0)
    factors = True if mask is None else mask(params) if callable(mask) else mask

    def move(u: jax.Array, p: jax.Array, k: float, multiplier: float) -> jax.Array:
      step = -rate * u
      whole = step if multiplier == 1 else multiplier * step
      return jnp.asarray(step - decay * k * (p + whole) if k else step, u.dtype)

    # A mask may be a prefix, and optax.partition leaves holes in the updates.
    moved = jax.tree.map(lambda k, us, ps, ms: jax.tree.map(
        lambda u, p, m: move(u, p, k, m), us, ps, ms), factors, updates, params,
                         leaves_like(updates, multipliers, 1.0))
    return moved, StepThenDecayState(optax.safe_increment(state.calls))

  return optax.GradientTransformation(init, update)


def compute_dtype(x: Any) -> Any:
  """Type to compute in: float32, or float64 for float64 where JAX has it."""
  return jax.dtypes.canonicalize_dtype(jnp.promote_types(x.dtype, jnp.float32))


def _zeros(n: int, dtype: Any) -> jax.Array:
  return jnp.zeros((n, n), dtype)
