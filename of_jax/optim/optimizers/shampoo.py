"""Shampoo (Gupta et al. 2018, 1802.09568), with its own power or He et al.'s, and grafting."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from of_jax.config import OptimConfig
from of_jax.optim import preconditioners
from of_jax.optim.decay import add_decayed_weights
from of_jax.optim.layout import Layout
from of_jax.optim.moments import averaged_weight
from of_jax.optim.preconditioners import BySide, Sides, Stacks, Vectors, vocabulary_axes
from of_jax.optim.rotated import Scalar, compute_dtype

FIELDS = {"b1": 0.95, "b2": 0.95, "eps": 1e-8, "shampoo_beta": None, "precondition_power": -0.5,
          "grafting": "adam", "precondition_frequency": 10, "max_precond_dim": 10_000}
SUMS_FACTORS = True

Grafting = Literal["none", "sgd", "adam"]


class ShampooState(NamedTuple):
  """State of `scale_by_shampoo`.

  Attributes:
    calls: number of calls so far.
    mu: first moment, shaped like the parameters.
    nu: second moment, likewise, for Adam's norm and for vectors.
    factors: moving averages, or sums, of G G^T and G^T G.
    roots: their powers at the last refresh; zeros before the first call.
    eigenvalues: of the averaged factors at that refresh, for telemetry.
  """

  calls: jax.Array
  mu: Any
  nu: Any
  factors: Any
  roots: Any
  eigenvalues: Any


def scale_by_shampoo(
    b1: float | jax.Array = 0.95, b2: float | jax.Array = 0.95,
    shampoo_beta: float | jax.Array | None = None, eps: float | jax.Array = 1e-8,
    power: float | jax.Array = -0.5, grafting: Grafting = "adam",
    precondition_frequency: int | jax.Array = 10, max_precond_dim: int = 10_000, *,
    views: Any | None = None, fixed_axes: Any | None = None) -> optax.GradientTransformation:
  """Direction of Shampoo, (L + eps I)^power M (R + eps I)^power, without the learning rate.

  Call t = 1, 2, ...:

    L <- beta L + (1 - beta) G G^T,  R <- beta R + (1 - beta) G^T G,  M <- b1 M + (1 - b1) G
    if t - 1 is a multiple of the frequency: roots of L / (1 - beta^t) and R / (1 - beta^t)
    U = P_L M / (1 - b1^t) P_R

  With beta = 1 the factors are sums, as in Gupta et al., Alg. 1. Theirs is power = -1/4, and U is
  then as large as an orthogonal matrix whatever the gradient's scale; at He et al.'s -1/2 (2024,
  2405.19279) it falls with that scale, so its size means little without grafting. With one
  factored side, the other being too large, that side takes both powers, as a tensor of order k
  has -1 / (2 k) a side in Gupta et al. A vector gets Adam.

  Grafting (Agarwal et al. 2020, 2002.11803) takes the norm, matrix by matrix, of the averaged
  gradient ("sgd") or of Adam's update ("adam"), and only the direction from U.

  Arguments are those of `shampoo`. A NaN in a gradient stays in the state.
  """
  if grafting not in ("none", "sgd", "adam"):
    raise ValueError(f"grafting={grafting!r}: not none, sgd or adam")
  rule = _Rule(b1, b2, b2 if shampoo_beta is None else shampoo_beta, eps, power, grafting,
               precondition_frequency,
               preconditioners.planner(views, fixed_axes, max_precond_dim))
  return optax.GradientTransformation(rule.init, rule.update)


@dataclasses.dataclass(frozen=True)
class _Rule:
  """The two functions of `scale_by_shampoo` and the pieces of its step; fields as there."""

  b1: Scalar
  b2: Scalar
  beta: Scalar
  eps: Scalar
  power: Scalar
  grafting: Grafting
  precondition_frequency: int | jax.Array
  plan: Callable[[Any, jax.Array], Sides]

  def init(self, params: Any) -> ShampooState:
    def tree(make: Any) -> Any:
      return jax.tree_util.tree_map_with_path(
          lambda path, p: make(self.plan(path, p), compute_dtype(p)), params)

    def squares() -> Any:
      return tree(lambda sides, dtype: sides.squares(
          dtype, lambda n, dtype: jnp.zeros((n, n), dtype)))

    return ShampooState(
        jnp.zeros((), jnp.int32), tree(lambda sides, dtype: jnp.zeros(sides.shape, dtype)),
        tree(lambda sides, dtype: jnp.zeros(sides.shape, dtype)), squares(), squares(),
        tree(lambda sides, dtype: Vectors({
            str(i): jnp.zeros((sides.batch, sides.sizes[i]), dtype) for i in sides.factored})))

  def update(self, updates: Any, state: ShampooState, params: Any = None
             ) -> tuple[Any, ShampooState]:
    del params
    structure: Any
    paths, structure = jax.tree_util.tree_flatten_with_path(updates)
    planned = [self.plan(path, g) for path, g in paths]
    old_mu, old_nu, old_factors, old_roots, old_eigenvalues = (
        structure.flatten_up_to(part) for part in state[1:])
    t = state.calls + 1
    gradients = [g.astype(compute_dtype(g)) for _, g in paths]
    mu = [self.b1 * m + (1 - self.b1) * g for m, g in zip(old_mu, gradients)]
    nu = [self.b2 * v + (1 - self.b2) * jnp.square(g) for v, g in zip(old_nu, gradients)]
    factors, total = self._factors(t, gradients, planned, old_factors)
    kept = ([root.sides for root in old_roots], [values.sides for values in old_eigenvalues])
    roots, eigenvalues = self._roots(t, factors, total, planned, kept)
    moved = [self._direction(t, g, *parts)
             for (_, g), *parts in zip(paths, planned, mu, nu, roots)]
    whole = structure.unflatten
    return whole(moved), ShampooState(
        optax.safe_increment(state.calls), whole(mu), whole(nu),
        whole([Stacks(factor) for factor in factors]), whole([Stacks(root) for root in roots]),
        whole([Vectors(values) for values in eigenvalues]))

  def _factors(self, t: jax.Array, gradients: list[jax.Array], planned: list[Sides],
               old: list[Stacks]) -> tuple[list[BySide], jax.Array]:
    """The factors with this step's gradients, and the weight that they have gathered."""
    beta = self.beta
    # A sum has weight 1 a step, where an average has 1 - beta.
    weight = jnp.where(beta == 1, 1, 1 - beta)
    total = jnp.where(beta == 1, 1, averaged_weight(beta, t))
    return [{side: beta * before.sides[side] + weight * product for side, product in
             preconditioners.products(sides.split(g), sides).items()}
            for g, sides, before in zip(gradients, planned, old)], total

  def _roots(self, t: jax.Array, factors: list[BySide], total: jax.Array, planned: list[Sides],
             kept: tuple[list[BySide], list[BySide]]) -> tuple[list[BySide], list[BySide]]:
    """Powers and eigenvalues of the averaged factors, new when due, else those that are kept."""

    def refresh() -> tuple[list[BySide], list[BySide]]:
      averaged = [{side: f / total for side, f in factor.items()} for factor in factors]
      exponents = [2 * self.power / max(1, len(sides.factored)) for sides in planned]
      return preconditioners.matrix_powers(averaged, exponents, self.eps)

    result: tuple[list[BySide], list[BySide]] = jax.lax.cond(
        (t - 1) % self.precondition_frequency == 0, refresh, lambda: kept)
    return result

  def _direction(self, t: jax.Array, g: jax.Array, sides: Sides, m: jax.Array, v: jax.Array,
                 root: BySide) -> jax.Array:
    """U of one parameter, with the grafted norm; Adam's update where no side has a factor."""
    averaged = sides.split(m) / averaged_weight(self.b1, t)
    adam = averaged / (jnp.sqrt(sides.split(v) / averaged_weight(self.b2, t)) + self.eps)
    if not sides.factored:
      return sides.join(adam).astype(g.dtype)
    u = preconditioners.precondition(averaged, root)
    if self.grafting != "none":
      norm = jnp.linalg.norm(u, axis=(1, 2), keepdims=True)
      wanted = jnp.linalg.norm(averaged if self.grafting == "sgd" else adam, axis=(1, 2),
                               keepdims=True)
      # A matrix whose gradients were all 0 does not move.
      u = u * jnp.where(norm > 0, wanted / jnp.where(norm > 0, norm, 1), 0)
    return sides.join(u).astype(g.dtype)


def shampoo(learning_rate: optax.ScalarOrSchedule, b1: float | jax.Array = 0.95,
            b2: float | jax.Array = 0.95, shampoo_beta: float | jax.Array | None = None,
            eps: float | jax.Array = 1e-8, weight_decay: float | jax.Array = 0.01,
            power: float | jax.Array = -0.5, grafting: Grafting = "adam",
            precondition_frequency: int | jax.Array = 10, max_precond_dim: int = 10_000, *,
            mask: Any | None = None, views: Any | None = None, fixed_axes: Any | None = None
            ) -> optax.GradientTransformation:
  """Shampoo: w <- w - lr (U + weight_decay w), U as `scale_by_shampoo` gives it.

  Args:
    learning_rate: a number, or a schedule of the calls so far.
    b1: decay of the averaged gradient M, which is corrected for bias; 0 is Gupta et al.'s G.
    b2: decay of Adam's second moment, for grafting and for vectors.
    shampoo_beta: decay of the factors; 1 sums them; default b2.
    eps: added to the factors' eigenvalues, in units of the squared gradient, and to the root of
      Adam's second moment.
    weight_decay: decoupled.
    power: of each factor, -1/2 (He et al.) or -1/4 (Gupta et al.).
    grafting: whose norm the update has, "none", "sgd" or "adam".
    precondition_frequency: steps between refreshes of the roots; the first call is one.
    max_precond_dim: larger sides have no factor. Static under `optax.inject_hyperparams`.
    mask: which leaves decay, as in optax.adamw.
    views, fixed_axes: as in of_jax.optim.soap.
  """
  return optax.chain(
      scale_by_shampoo(b1, b2, shampoo_beta, eps, power, grafting, precondition_frequency,
                       max_precond_dim, views=views, fixed_axes=fixed_axes),
      add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds Shampoo for the matrices that the parameters' axes name, the vocabulary not factored."""
  assert (optim.b1 is not None and optim.b2 is not None and optim.eps is not None
          and optim.precondition_power is not None and optim.grafting is not None
          and optim.precondition_frequency is not None
          and optim.max_precond_dim is not None), "resolve the config first"
  return shampoo(
      learning_rate, optim.b1, optim.b2, optim.shampoo_beta, optim.eps, layout.weight_decay,
      optim.precondition_power, optim.grafting, optim.precondition_frequency,
      optim.max_precond_dim, mask=layout.decays, views=layout.views,
      fixed_axes=vocabulary_axes(layout.axes))
