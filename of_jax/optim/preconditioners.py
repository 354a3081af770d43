"""Kronecker factors of gradients, and their bases and roots: common to SOAP and Shampoo.

Enters: gradients as [batch, side, ..., side], a stack of matrices (or of tensors of any order).
Leaves: for each factored side i of size n a stack of factors G_i G_i^T, [batch, n, n], where G_i
has the side as rows and all else as columns; and bases, roots and rotations by side. By side,
arrays are in dictionaries whose keys are "0" for rows, "1" for columns and so on.

Every decomposition of a step goes through `grouped`: one call a size. On CPU set
OPENBLAS_NUM_THREADS=1 before jax is imported, as the binaries do: OpenBLAS's own threads, below
XLA's, have been seen to make a refresh ten times as slow.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from of_jax.optim.matrices import MatrixView, Shape, plain_view

BySide = dict[str, jax.Array]
# A factor is a sum of squares: below float32's own products it would be noise, on an accelerator
# whose default is bfloat16 or TF32.
_PRECISION = jax.lax.Precision.HIGHEST


class Stacks(NamedTuple):
  """Square matrices by side, [matrices, side, side] each: one parameter's part of a state."""

  sides: BySide

  @property
  def logical_axes(self) -> tuple[str, ...]:
    return ("matrices", "side", "side")


class Vectors(NamedTuple):
  """Vectors by side, one number for each row of the matrices of Stacks: [matrices, side] each."""

  sides: BySide

  @property
  def logical_axes(self) -> tuple[str, ...]:
    return ("matrices", "side")


@dataclasses.dataclass(frozen=True)
class Sides:
  """View of a parameter as `batch` tensors with sides of `sizes`.

  Attributes:
    view: where the tensors are matrices; else the array is reshaped to one tensor.
    factored: the sides that have a factor. None of a vector's has.
  """

  shape: Shape
  sizes: Shape
  factored: tuple[int, ...]
  view: MatrixView | None = None

  @property
  def batch(self) -> int:
    """Number of tensors."""
    return self.view.batch if self.view else 1

  def split(self, x: jax.Array) -> jax.Array:
    """Reshapes an array of `shape` to [batch, *sizes]."""
    return self.view.split(x) if self.view else x.reshape(1, *self.sizes)

  def join(self, x: jax.Array) -> jax.Array:
    """Reshapes [batch, *sizes] back to `shape`: the inverse of `split`."""
    return self.view.join(x) if self.view else x.reshape(self.shape)

  def squares(self, dtype: Any, fill: Callable[..., jax.Array]) -> Stacks:
    """Fills a square for every matrix of every factored side by fill(n, dtype), [n, n]."""
    return Stacks({str(i): jnp.tile(fill(self.sizes[i], dtype=dtype), (self.batch, 1, 1))
                   for i in self.factored})


Planner = Callable[[tuple[Any, ...], Any], Sides]


def planner(views: Any | None, fixed_axes: Any | None, max_precond_dim: int,
            merge_dims: bool = False) -> Planner:
  """Makes a function (path, array) -> Sides; sides above `max_precond_dim` have no factor.

  Args:
    views: tree of MatrixView like the parameters; default of_jax.optim.matrices.plain_view.
    fixed_axes: tree of tuples of the axes whose side has no factor, whatever its size.
    max_precond_dim: largest size of a factor.
    merge_dims: the authors' view of an array of two axes or more, see `merged_sizes`.
  """
  if merge_dims and views is not None:
    raise ValueError("merge_dims=True: views already say what the sides are")
  named, fixed = _by_path(views), _by_path(fixed_axes)

  def plan(path: tuple[Any, ...], array: Any) -> Sides:
    shape = tuple(array.shape)
    if merge_dims and len(shape) > 1:
      sizes = merged_sizes(shape, max_precond_dim)
      return Sides(shape, sizes, tuple(i for i, n in enumerate(sizes) if n <= max_precond_dim))
    view = plain_view(shape) if views is None else named[path]
    factored = [i for i, (size, axes) in enumerate((
        (view.rows, view.row_axes), (view.columns, view.column_axes)))
        if view.is_matrix and size <= max_precond_dim and not set(axes) & set(fixed.get(path, ()))]
    return Sides(shape, (view.rows, view.columns), tuple(factored), view)

  return plan


def vocabulary_axes(axes: Any) -> Any:
  """Names the vocabulary's axes as `fixed_axes`: He et al. 2024 (2405.19279, App. D) do not rotate
  it."""
  return jax.tree.map(lambda names: tuple(i for i, name in enumerate(names) if name == "vocab"),
                      axes, is_leaf=lambda node: isinstance(node, tuple))


def merged_sizes(shape: Shape, max_precond_dim: int) -> Shape:
  """Merges neighbouring axes into one side while their product is at most `max_precond_dim`.

  This is `merge_dims` of github.com/nikhilvyas/SOAP: axes of size 1 vanish, and the axis behind one
  that is too large by itself begins a new side.
  """
  sizes: list[int] = []
  side = 1
  for size in shape:
    if side * size <= max_precond_dim:
      side *= size
    elif side > 1:
      sizes.append(side)
      side = size
    else:
      sizes.append(size)
  return (*sizes, side) if side > 1 or not sizes else tuple(sizes)


def products(x: jax.Array, sides: Sides) -> BySide:
  """Products x_i x_i^T by factored side, [batch, n, n]."""
  flat = {i: jnp.moveaxis(x, i + 1, 1).reshape(sides.batch, sides.sizes[i], -1)
          for i in sides.factored}
  return {str(i): jnp.matmul(f, f.mT, precision=_PRECISION) for i, f in flat.items()}


def rotate(x: jax.Array, bases: BySide) -> jax.Array:
  """Rotates x into the bases' coordinates: Q_0^T x Q_1 of a matrix, the basis the columns of Q."""
  return _apply(x, {side: basis.mT for side, basis in bases.items()})


def rotate_back(x: jax.Array, bases: BySide) -> jax.Array:
  """Inverts `rotate` for orthogonal bases: Q_0 x Q_1^T of a matrix."""
  return _apply(x, bases)


def precondition(x: jax.Array, roots: BySide) -> jax.Array:
  """Multiplies every side by its matrix: P_0 x P_1 of a matrix, for symmetric P."""
  return _apply(x, roots)


def permute(x: jax.Array, orders: BySide) -> jax.Array:
  """Puts the entries along each side into the order given, [batch, n]."""
  for side, order in orders.items():
    shape = [1] * x.ndim
    shape[0], shape[int(side) + 1] = order.shape
    x = jnp.take_along_axis(x, order.reshape(shape), int(side) + 1)
  return x


def eigenbases(factors: list[BySide]) -> list[BySide]:
  """Eigenvectors of each factor as columns, by falling eigenvalue."""
  return _by_side(lambda stack: jnp.flip(jnp.linalg.eigh(stack)[1], -1), factors)


def power_step(factors: list[BySide], bases: list[BySide]
               ) -> tuple[list[BySide], list[BySide]]:
  """Takes one step of power iteration from each basis: Q of the QR decomposition of L Q.

  Before it, the columns of the old basis are sorted by falling q^T L q (Vyas et al. 2024,
  2409.11321, Alg. 4).

  Returns:
    new bases, and the orders that whatever is kept in the old coordinates must follow.
  """
  powers: list[BySide] = []
  orders: list[BySide] = []
  for factor, basis in zip(factors, bases):
    moved = {i: jnp.matmul(factor[i], basis[i], precision=_PRECISION) for i in factor}
    order = {i: jnp.argsort(-jnp.sum(basis[i] * moved[i], -2), -1) for i in factor}
    powers.append({i: jnp.take_along_axis(moved[i], order[i][:, None], -1) for i in factor})
    orders.append(order)
  return _by_side(lambda stack: jnp.linalg.qr(stack)[0], powers), orders


def quotients(factors: BySide, bases: BySide) -> BySide:
  """Rayleigh quotients q^T L q of a basis' columns q, [batch, n]: L's eigenvalues in its own."""
  return {side: jnp.sum(q * jnp.matmul(factors[side], q, precision=_PRECISION), -2)
          for side, q in bases.items()}


def matrix_powers(factors: list[BySide], exponents: list[float | jax.Array],
                  eps: float | jax.Array) -> tuple[list[BySide], list[BySide]]:
  """Raises factors to powers, (L + eps I)^exponent, and gives L's eigenvalues, [batch, n], rising.

  Each parameter has its own exponent.

  Eigenvalues that rounding leaves below 0 count as 0. A zero eigenvalue with eps = 0 has no
  negative power: there the result is infinite.
  """
  def decompose(stack: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(stack)
    # One array holds both, so that `grouped` need not know of pairs.
    return jnp.concatenate([values[..., None, :], vectors], -2)

  def assemble(decomposed: jax.Array, exponent: float | jax.Array) -> jax.Array:
    values, vectors = decomposed[:, 0], decomposed[:, 1:]
    powers = (jnp.maximum(values, 0) + eps) ** exponent
    return jnp.matmul(vectors * powers[:, None], vectors.mT, precision=_PRECISION)

  decomposed = _by_side(decompose, factors)
  return ([{side: assemble(stack, exponent) for side, stack in stacks.items()}
           for stacks, exponent in zip(decomposed, exponents)],
          [{side: jnp.maximum(stack[:, 0], 0) for side, stack in stacks.items()}
           for stacks in decomposed])


def condition_number(eigenvalues: jax.Array) -> jax.Array:
  """Ratio of the largest to the smallest eigenvalue, [..., n] -> [...]; NaN where all are 0.

  The smallest counts as n 2^-23 of the largest where it is less, which float32 cannot tell from 0.
  """
  largest = jnp.max(eigenvalues, -1)
  least = eigenvalues.shape[-1] * 2.0 ** -23 * largest
  return largest / jnp.maximum(jnp.min(eigenvalues, -1), least)


def grouped(function: Callable[[jax.Array], jax.Array], stacks: list[jax.Array]
            ) -> list[jax.Array]:
  """Applies `function` to each stack [batch, n, n]: one call a size, shared by the mesh's devices.

  `function` takes [..., n, n] and leaves the leading axes.
  """
  kinds = sorted({(stack.shape[-1], stack.dtype.name) for stack in stacks})
  results: list[Any] = [None] * len(stacks)
  for kind in kinds:
    members = [i for i, s in enumerate(stacks) if (s.shape[-1], s.dtype.name) == kind]
    done = _shared(function, jnp.concatenate([stacks[i] for i in members]))
    ends = [stacks[i].shape[0] for i in members]
    starts = [sum(ends[:i]) for i in range(len(ends))]
    for member, start, count in zip(members, starts, ends):
      results[member] = done[start:start + count]
  return results


def _shared(function: Callable[[jax.Array], jax.Array], stack: jax.Array) -> jax.Array:
  """Computes function(stack), each device of the mesh its share of the matrices."""

  def compute(share: jax.Array) -> jax.Array:
    # XLA on CPU runs independent batched QR or Cholesky decompositions at once, and some never
    # end: each holds a thread and waits for others to take its batch. An optimisation barrier
    # between them is gone once the program is compiled. One matrix at a time takes as much
    # processor time and waits for nothing.
    result: jax.Array = jax.lax.platform_dependent(
        share, cpu=lambda matrices: jax.lax.map(function, matrices), default=function)
    return result

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return compute(stack)
  # Identity matrices fill it up: the devices must divide it, and any function takes them.
  count = stack.shape[0]
  missing = -count % math.prod(mesh.axis_sizes)
  filler = jnp.tile(jnp.eye(stack.shape[-1], dtype=stack.dtype), (missing, 1, 1))
  spec = PartitionSpec(mesh.axis_names, None, None)
  spread: jax.Array = jax.shard_map(compute, in_specs=spec, out_specs=spec, check_vma=False)(
      jnp.concatenate([stack, filler]))
  return spread[:count]


def _by_path(tree: Any | None) -> dict[Any, Any]:
  return dict(jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda node: isinstance(node, tuple)))


def _by_side(function: Callable[[jax.Array], jax.Array], trees: list[BySide]) -> list[BySide]:
  leaves, structure = jax.tree.flatten(trees)
  result: list[BySide] = jax.tree.unflatten(structure, grouped(function, leaves))
  return result


def _apply(x: jax.Array, squares: BySide) -> jax.Array:
  """Contracts each side's index with the columns of its matrix."""
  for side, square in squares.items():
    axis = int(side) + 1
    if axis == 1:
      flat = x.reshape(*x.shape[:2], -1)
      x = jnp.matmul(square, flat, precision=_PRECISION).reshape(x.shape)
    else:
      moved = jnp.moveaxis(x, axis, -1)
      flat = moved.reshape(moved.shape[0], -1, moved.shape[-1])
      turned = jnp.matmul(flat, square.mT, precision=_PRECISION)
      x = jnp.moveaxis(turned.reshape(moved.shape), -1, axis)
  return x
