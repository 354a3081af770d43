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
from of_jax.quantise import quantisers
from of_jax.quantise.quantisers import Axes, Grid
from of_jax.quantise.scheme import LINEAR_INPUTS, Scheme

# name of a linear map -> bound [layers, groups, 1, 1 or outputs].
Bounds = Mapping[str, jax.Array]
# site -> least and largest value, each [layers, 1 or neurons].
Ranges = Mapping[str, tuple[jax.Array, jax.Array]]
# site -> whether it is quantised: a bool of Python's, or one that a compiled program is given.
Chosen = Mapping[str, Any]

_WITHOUT_NEURONS = ("attn_logits", "attn_weights")


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
    kept = at_least_float32(x)
    axes = _axes(site, kept, self._scheme)
    low, high = quantisers.activation_range(
        kept, axes, self._scheme.activation_bits, self._scheme.activation_range)
    return x, {"low": low.reshape(-1), "high": high.reshape(-1)}


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
    if site in LINEAR_INPUTS:
      return x, None
    return self._rounded(site, x, layer), None

  def product(self, name: str, site: str, linear: Linear, x: jax.Array, layer: jax.Array | int
              ) -> tuple[jax.Array, dict[str, Any] | None]:
    inputs = x.ndim - linear.inputs
    flat = x.reshape(*x.shape[:inputs], -1)
    w_IxO = _matrix(linear)
    grid = self._weight_grid(name, layer)
    if self._scheme.arithmetic == "integer" and self._chosen[site] and self._chosen[name]:
      y = integer_product(flat, self._grid(site, flat, layer), w_IxO, grid)
    else:
      w_hat = _regrouped(grid, w_IxO)
      w_hat = jnp.where(self._chosen[name], w_hat, w_IxO).astype(flat.dtype)
      y = jnp.tensordot(self._rounded(site, flat, layer), w_hat, 1)
    y = y.reshape(*x.shape[:inputs], *linear.weight().shape[linear.inputs:]).astype(x.dtype)
    return (y + linear.bias[...].astype(x.dtype) if linear.has_bias else y), None

  def _rounded(self, site: str, x: jax.Array, layer: jax.Array | int) -> jax.Array:
    if self._chosen[site] is False:
      return x
    wide = at_least_float32(x)
    return jnp.where(self._chosen[site], self._grid(site, wide, layer)(wide), wide).astype(x.dtype)

  def _grid(self, site: str, x: jax.Array, layer: jax.Array | int) -> Grid:
    bits = self._scheme.activation_bits
    if not self._scheme.is_static:
      return quantisers.asymmetric(*quantisers.extremes(at_least_float32(x), (-1,)), bits)
    low, high = (_of_layer(one, layer) for one in self._ranges[site])
    return quantisers.asymmetric(low, high, bits)

  def _weight_grid(self, name: str, layer: jax.Array | int) -> Grid:
    return quantisers.symmetric(_of_layer(self._bounds[name], layer), self._scheme.weight_bits)


def weight_bound(w_IxO: jax.Array, scheme: Scheme, name: str) -> jax.Array:
  """Bound of a matrix's entries, [groups, 1, 1 or outputs].

  Raises:
    UserError: groups that do not divide the inputs.
  """
  inputs, outputs = w_IxO.shape
  size = scheme.group_size if scheme.weight_granularity == "group" else inputs
  if inputs % size:
    raise UserError(f"group_size={size}: does not divide the {inputs} inputs of {name}")
  w_GxIxO = w_IxO.reshape(-1, size, outputs)
  axes = (0, 1, 2) if scheme.weight_granularity == "tensor" else (1,)
  return quantisers.weight_bound(w_GxIxO, axes, scheme.weight_bits, scheme.weight_range)


def rounded_weight(w_IxO: jax.Array, scheme: Scheme, name: str) -> jax.Array:
  """Rounds a matrix to numbers that a scheme can hold."""
  bound = weight_bound(w_IxO, scheme, name)
  return _regrouped(quantisers.symmetric(bound, scheme.weight_bits), w_IxO)


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


def _axes(site: str, x: jax.Array, scheme: Scheme) -> Axes:
  a_neuron = scheme.activation_granularity == "channel" and site not in _WITHOUT_NEURONS
  return tuple(range(x.ndim - a_neuron))


def _of_layer(values: jax.Array, layer: jax.Array | int) -> jax.Array:
  """Selects a block's own entry; outside the blocks, where the layer is 0, the only one."""
  return values[0 if isinstance(layer, int) and layer == 0 else layer - 1]
