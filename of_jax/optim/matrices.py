"""Views of parameters as stacks of matrices, which is how an optimiser sees them.

Enters: the logical axes that a parameter states (of_jax.models.partition), and its shape. Leaves:
a view that turns an array of that shape into [batch, rows, columns] and back. Rows are inputs and
columns outputs, as kernels are (in, out) here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# A stack of layers is as many matrices, never one.
BATCH_AXES = ("layers",)
# What a head holds is one side of a matrix, however many axes it takes.
_HEAD_AXES = ("heads", "head_dim")

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class MatrixView:
  """Axes of an array of `shape` that count its matrices, their rows and their columns.

  A vector is one row, a scalar one entry: `split` always gives three axes. Every axis of the
  array is in one of the three tuples.
  """

  shape: Shape
  batch_axes: tuple[int, ...]
  row_axes: tuple[int, ...]
  column_axes: tuple[int, ...]

  @property
  def is_matrix(self) -> bool:
    """Tells whether there are rows and columns, even if one of them is of size 1."""
    return bool(self.row_axes and self.column_axes)

  @property
  def batch(self) -> int:
    """Number of matrices."""
    return self._size(self.batch_axes)

  @property
  def rows(self) -> int:
    """Number of a matrix's rows, which are its inputs."""
    return self._size(self.row_axes)

  @property
  def columns(self) -> int:
    """Number of a matrix's columns, which are its outputs."""
    return self._size(self.column_axes)

  def split(self, x: jax.Array) -> jax.Array:
    """Reshapes an array of `shape` to [batch, rows, columns]."""
    return jnp.transpose(x, self._order).reshape(self.batch, self.rows, self.columns)

  def join(self, matrices: jax.Array) -> jax.Array:
    """Reshapes [batch, rows, columns] back to `shape`: the inverse of `split`."""
    ordered = matrices.reshape([self.shape[axis] for axis in self._order])
    return jnp.transpose(ordered, [self._order.index(axis) for axis in range(len(self.shape))])

  def spread(self, values: jax.Array) -> jax.Array:
    """Reshapes one value a matrix, [batch], so that it broadcasts against an array of `shape`."""
    sizes = [size if axis in self.batch_axes else 1 for axis, size in enumerate(self.shape)]
    return values.reshape(sizes)

  def transposed(self) -> "MatrixView":
    """View with rows and columns exchanged."""
    return dataclasses.replace(self, row_axes=self.column_axes, column_axes=self.row_axes)

  @property
  def _order(self) -> tuple[int, ...]:
    return self.batch_axes + self.row_axes + self.column_axes

  def _size(self, axes: tuple[int, ...]) -> int:
    return math.prod(self.shape[axis] for axis in axes)


def view(axes: tuple[str, ...], shape: Shape) -> MatrixView:
  """Finds the view of one parameter by the names of its axes.

  `layers` counts matrices. Neighbouring `heads` and `head_dim` are one side. Of what is left, two
  sides are a matrix: query [embed, heads, head_dim] has embed rows, the output projection
  [heads, head_dim, embed] has heads x head_dim rows, a table [vocab, embed] has vocab rows. One
  side is a vector, as a bias [heads, head_dim] is.

  Raises:
    ValueError: more than two sides, or as many names as the array has not axes.
  """
  if len(axes) != len(shape):
    raise ValueError(f"axes {axes} name {len(axes)} axes of the shape {shape}")
  batch = tuple(i for i, axis in enumerate(axes) if axis in BATCH_AXES)
  sides: list[list[int]] = []
  for i, axis in enumerate(axes):
    if i in batch:
      continue
    joins = axis in _HEAD_AXES and sides and sides[-1][-1] == i - 1 and axes[i - 1] in _HEAD_AXES
    if joins:
      sides[-1].append(i)
    else:
      sides.append([i])
  if len(sides) > 2:
    raise ValueError(f"axes {axes} are no matrix: {len(sides)} sides")
  columns = tuple(sides[-1]) if sides else ()
  rows = tuple(sides[0]) if len(sides) == 2 else ()
  return MatrixView(tuple(shape), batch, rows, columns)


def plain_view(shape: Shape) -> MatrixView:
  """View of an array whose axes have no names: [..., in, out], the leading axes count matrices."""
  axes = tuple(range(len(shape)))
  return MatrixView(tuple(shape), axes[:-2], axes[-2:-1], axes[-1:])


def views(axes: Any, shapes: Any) -> Any:
  """Views of all parameters, as a tree like them.

  Args:
    axes: tree of tuples of logical axes, as of_jax.models.functional.Network.axes.
    shapes: tree of arrays or jax.ShapeDtypeStruct.
  """
  return jax.tree.map(lambda names, leaf: view(names, leaf.shape), axes, shapes,
                      is_leaf=lambda node: isinstance(node, tuple))


def views_like(tree: Any, named: Any | None = None) -> Any:
  """Views of a tree of arrays, to map over together with it.

  Args:
    tree: arrays, of which optax.masked and optax.partition may have left some out.
    named: as `views` gives it for the whole tree; default the plain view of every array.
  """
  if named is None:
    return jax.tree.map(lambda leaf: plain_view(leaf.shape), tree)
  return leaves_like(tree, named)


def of_each_matrix(name: str, change: Callable[[jax.Array], jax.Array], named: Any | None
                   ) -> optax.GradientTransformation:
  """Makes a transformation without state that changes each gradient as a matrix.

  Args:
    name: of the optimiser, for the message.
    change: takes and gives matrices, [matrices, rows, columns].
    named: as `views` gives it; default the plain view of every array.

  Raises:
    ValueError: a leaf that is no matrix, when its state is made.
  """
  def init(params: optax.Params) -> optax.OptState:
    for view in jax.tree.leaves(views_like(params, named)):
      if not view.is_matrix:
        raise ValueError(f"{name} is for matrices, not for an array of shape {view.shape}")
    return optax.EmptyState()

  def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
             ) -> tuple[optax.Updates, optax.OptState]:
    del params

    def step(g: jax.Array, view: MatrixView) -> jax.Array:
      return view.join(change(view.split(g))).astype(g.dtype)

    return jax.tree.map(step, updates, views_like(updates, named)), state

  return optax.GradientTransformation(init, update)


def leaves_like(tree: Any, whole: Any | None, default: Any = None) -> Any:
  """Leaves of `whole` that `tree` has too: optax.masked may have left some out of it.

  Args:
    tree: arrays, and optax.MaskedNode in place of what is left out.
    whole: one leaf an array; None for the default everywhere.
  """
  if whole is None:
    return jax.tree.map(lambda _: default, tree)
  return jax.tree.map(lambda leaf, part: part if isinstance(part, optax.MaskedNode) else leaf,
                      whole, tree)
