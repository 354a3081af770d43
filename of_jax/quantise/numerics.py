"""Quantisation inside a forward pass. Enters: a scheme, and what calibration found. Leaves: the
numerics of a model that finds ranges, or that computes with quantised numbers.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from of_jax.errors import UserError
from of_jax.models.norms import at_least_float32
from of_jax.models.numerics import Numerics
from of_jax.models.parameter import Linear
from of_jax.quantise import bondarenko, quantisers
from of_jax.quantise.quantisers import Axes, Grid
from of_jax.quantise.scheme import LINEAR_INPUTS, Scheme

# name of a linear map -> bound [layers, groups, 1, 1 or outputs].
Bounds = Mapping[str, jax.Array]
# site -> least and largest value, each [layers, 1 or neurons].
Ranges = Mapping[str, tuple[jax.Array, jax.Array]]
# site -> whether it is quantised: a bool of Python's, or one that a compiled program is given.
Chosen = Mapping[str, Any]

_WITHOUT_NEURONS = ("attn_scores", "attn_logits", "attn_weights")


class FindBounds(Numerics):
  """Keeps the bound of every weight, and changes nothing."""

  def __init__(self, scheme: Scheme):
    self._scheme = scheme

  def product(self, name: str, site: str, linear: Linear, x: jax.Array, layer: jax.Array | int
              ) -> tuple[jax.Array, dict[str, Any] | None]:
    bound = weight_bound(_matrix(linear), self._scheme, name)
    return linear(x), {"bound": bound}


class FindRanges(Numerics):
  """Keeps the range of every activation in a batch, and changes nothing."""

  def __init__(self, scheme: Scheme):
    self._scheme = scheme

  def activation(self, site: str, x: jax.Array, layer: jax.Array | int
                 ) -> tuple[jax.Array, dict[str, Any] | None]:
    if site not in self._scheme.sites:
      return x, None
    return x, _kept(*_range(site, at_least_float32(x), self._scheme))


class Quantised(Numerics):
  """Computes with quantised numbers at the chosen sites."""

  def __init__(self, scheme: Scheme, bounds: Bounds, ranges: Ranges, chosen: Chosen):
    """Args:
      bounds: of the weights, as FindBounds keeps them.
      ranges: of the activations; not read where they are dynamic.
      chosen: for every site of scheme.SITES. With integer arithmetic bools of Python's.
    """
    self._scheme, self._bounds, self._ranges, self._chosen = scheme, bounds, ranges, chosen

  def activation(self, site: str, x: jax.Array, layer: jax.Array | int
                 ) -> tuple[jax.Array, dict[str, Any] | None]:
    # A linear map quantises what it reads; others may read the same unquantised, as the stream.
    if site in LINEAR_INPUTS and not self._scheme.is_theirs:
      return x, None
    return self._rounded(site, x, layer), None

  def product(self, name: str, site: str, linear: Linear, x: jax.Array, layer: jax.Array | int
              ) -> tuple[jax.Array, dict[str, Any] | None]:
    inputs = x.ndim - linear.inputs
    flat = x.reshape(*x.shape[:inputs], -1)
    w_IxO = _matrix(linear)
    grid = weight_grid(w_IxO, _of_layer(self._bounds[name], layer), self._scheme)
    if self._scheme.arithmetic == "integer" and self._chosen[site] and self._chosen[name]:
      y = integer_product(flat, self._grid(site, flat, layer), w_IxO, grid)
    else:
      w_hat = _regrouped(grid, w_IxO)
      w_hat = jnp.where(self._chosen[name], w_hat, w_IxO).astype(flat.dtype)
      x_hat = flat if self._scheme.is_theirs else self._rounded(site, flat, layer)
      y = jnp.tensordot(x_hat, w_hat, 1)
    y = y.reshape(*x.shape[:inputs], *linear.weight().shape[linear.inputs:]).astype(x.dtype)
    return (y + linear.bias[...].astype(x.dtype) if linear.has_bias else y), None

  def _rounded(self, site: str, x: jax.Array, layer: jax.Array | int) -> jax.Array:
    if self._chosen[site] is False:
      return x
    wide = at_least_float32(x)
    return jnp.where(self._chosen[site], self._grid(site, wide, layer)(wide), wide).astype(x.dtype)

  def _grid(self, site: str, x: jax.Array, layer: jax.Array | int) -> Grid:
    low, high = ((_of_layer(one, layer) for one in self._ranges[site]) if self._scheme.is_static
                 else quantisers.extremes(at_least_float32(x), (-1,)))
    return activation_grid(low, high, self._scheme)


class FindRangesQuantised(Quantised):
  """Keeps the range of every activation, this batch's combined with those before, and computes
  with numbers that are quantised by it."""

  def __init__(self, scheme: Scheme, bounds: Bounds, ranges: Ranges, chosen: Chosen,
               is_first: jax.Array):
    """Args:
      scheme, bounds, chosen: as in Quantised.
      ranges: after the batches before; not read in the first batch.
      is_first: whether this is the first.
    """
    super().__init__(scheme, bounds, ranges, chosen)
    self._is_first = is_first

  def activation(self, site: str, x: jax.Array, layer: jax.Array | int
                 ) -> tuple[jax.Array, dict[str, Any] | None]:
    if self._chosen[site] is False:
      return x, None
    wide = at_least_float32(x)
    new = _range(site, wide, self._scheme)
    old = tuple(_of_layer(one, layer).reshape(new[0].shape) for one in self._ranges[site])
    combined = quantisers.combine((old[0], old[1]), new, self._scheme.activation_range)
    low, high = (jnp.where(self._is_first, a, b) for a, b in zip(new, combined))
    y = jnp.where(self._chosen[site], activation_grid(low, high, self._scheme)(wide), wide)
    return y.astype(x.dtype), _kept(low, high)


def weight_bound(w_IxO: jax.Array, scheme: Scheme, name: str) -> jax.Array:
  """Bound of a matrix's entries, [groups, 1, 1 or outputs].

  Raises:
    UserError: groups that do not divide the inputs.
  """
  inputs, outputs = w_IxO.shape
  size = scheme.group_size if scheme.weight_granularity == "group" else inputs
  if inputs % size:
    raise UserError(f"group_size={size}: does not divide the {inputs} inputs of {name}")
  return grouped_bound(w_IxO.reshape(-1, size, outputs), scheme)


def grouped_bound(w_GxIxO: jax.Array, scheme: Scheme) -> jax.Array:
  """Bound of the entries of [groups, inputs, outputs], [groups, 1, 1 or outputs]."""
  axes = (0, 1, 2) if scheme.weight_granularity == "tensor" else (1,)
  if scheme.is_theirs and scheme.weight_range == "mse":
    return bondarenko.searched_bound(w_GxIxO, axes, scheme.weight_bits)
  return quantisers.weight_bound(w_GxIxO, axes, scheme.weight_bits, scheme.weight_range)


def weight_grid(w: jax.Array, bound: jax.Array, scheme: Scheme) -> Grid:
  """Makes the grid for a whole tensor, by the bounds of its parts."""
  if scheme.is_theirs:
    return bondarenko.weight_grid(w, bound, scheme.weight_bits)
  return quantisers.symmetric(bound, scheme.weight_bits)


def activation_grid(low: jax.Array, high: jax.Array, scheme: Scheme) -> Grid:
  """Makes the grid for activations of a range."""
  grid = bondarenko.activation_grid if scheme.is_theirs else quantisers.asymmetric
  return grid(low, high, scheme.activation_bits)


def rounded_weight(w_IxO: jax.Array, scheme: Scheme, name: str) -> jax.Array:
  """Rounds a matrix to numbers that a scheme can hold."""
  return _regrouped(weight_grid(w_IxO, weight_bound(w_IxO, scheme, name), scheme), w_IxO)


def integer_product(x: jax.Array, x_grid: Grid, w_IxO: jax.Array, w_grid: Grid) -> jax.Array:
  """Multiplies int8 numbers, x W, float32 [..., outputs].

  With x = (q - z) s a token and W = p t an output and group, a group's part is
  s t (sum_i q_i p_i - z sum_i p_i), both sums in int32. A token that is not finite gives NaN.

  Args:
    x: [..., inputs].
    x_grid: one range, or one a token.
    w_grid: scale [groups, 1, 1 or outputs].
  """
  groups = w_grid.scale.shape[0]
  q = x_grid.integers(at_least_float32(x)).astype(jnp.int8)
  q_NxGxI = q.reshape(math.prod(x.shape[:-1]), groups, -1)
  p_GxIxO = w_grid.integers(w_IxO.reshape(groups, -1, w_IxO.shape[1])).astype(jnp.int8)
  sums_GxNxO = jax.lax.dot_general(q_NxGxI, p_GxIxO, (((2,), (1,)), ((1,), (0,))),
                                   preferred_element_type=jnp.int32)
  z_Nx1 = jnp.broadcast_to(x_grid.zero, (*x.shape[:-1], 1)).reshape(-1, 1).astype(jnp.int32)
  s_Nx1 = jnp.broadcast_to(x_grid.scale, (*x.shape[:-1], 1)).reshape(-1, 1)
  p_sums_Gx1xO = jnp.sum(p_GxIxO, 1, dtype=jnp.int32, keepdims=True)
  whole_GxNxO = sums_GxNxO - z_Nx1 * p_sums_Gx1xO
  y_NxO = s_Nx1 * jnp.sum(whole_GxNxO * w_grid.scale, 0)
  finite = jnp.all(jnp.isfinite(x), -1, keepdims=True)
  return jnp.where(finite, y_NxO.reshape(*x.shape[:-1], -1), jnp.nan)


def _matrix(linear: Linear) -> jax.Array:
  weight = linear.weight()
  return weight.reshape(math.prod(weight.shape[:linear.inputs]), -1)


def _regrouped(grid: Grid, w_IxO: jax.Array) -> jax.Array:
  groups = grid.scale.shape[0]
  return grid(w_IxO.reshape(groups, -1, w_IxO.shape[1])).reshape(w_IxO.shape)


def _range(site: str, x: jax.Array, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
  return quantisers.activation_range(x, _axes(site, x, scheme), scheme.activation_bits,
                                     scheme.activation_range)


def _kept(low: jax.Array, high: jax.Array) -> dict[str, jax.Array]:
  return {"low": low.reshape(-1), "high": high.reshape(-1)}


def _axes(site: str, x: jax.Array, scheme: Scheme) -> Axes:
  a_neuron = scheme.activation_granularity == "channel" and site not in _WITHOUT_NEURONS
  return tuple(range(x.ndim - a_neuron))


def _of_layer(values: jax.Array, layer: jax.Array | int) -> jax.Array:
  """Selects a block's own entry; outside the blocks, where the layer is 0, the only one."""
  return values[0 if isinstance(layer, int) and layer == 0 else layer - 1]
