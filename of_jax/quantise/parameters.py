"""Parameters that no linear map of a block holds, quantised: tables and gains. Enters: a network,
its parameters, a scheme. Leaves: bounds by path; the parameters rounded.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from of_jax.models.functional import Network, Parameters
from of_jax.quantise.numerics import grouped_bound, weight_grid
from of_jax.quantise.scheme import Scheme

_TABLES = {("embedding", "token"): "token_table", ("embedding", "position"): "position_table",
           ("embedding_projection", "entry"): "embedding_projection",
           ("embedding_projection", "exit"): "embedding_projection"}

Path = tuple[str, ...]


def sites(network: Network) -> Iterator[tuple[Path, str, bool]]:
  """Finds the parameters: (path, site, whether it has a leading axis of layers)."""
  axes = flatten_dict(network.axes)
  for path, role in flatten_dict(network.roles).items():
    own = [axis for axis in axes[path] if axis != "layers"]
    if path in _TABLES:
      yield path, _TABLES[path], False
    elif role == "norm" and path[-1] != "bias" and own:
      yield path, "norm_gains", len(own) < len(axes[path])


def bounds(network: Network, params: Parameters, scheme: Scheme) -> dict[str, jax.Array]:
  """Finds the bound of each that the scheme has, by its path; of a stack's gains one a layer."""
  flat = flatten_dict(params)
  return {"/".join(path): _each(functools.partial(_bound, scheme), stacked, flat[path])
          for path, site, stacked in sites(network) if site in scheme.sites}


def rounded(network: Network, params: Parameters, scheme: Scheme,
            found: Mapping[str, jax.Array], chosen: Mapping[str, Any]) -> Parameters:
  """Rounds those of the chosen sites, by bounds that `bounds` found."""
  flat = dict(flatten_dict(params))
  for path, site, stacked in sites(network):
    if "/".join(path) in found and chosen[site] is not False:
      w = flat[path]
      hat = _each(functools.partial(_rounded, scheme), stacked, w, found["/".join(path)])
      flat[path] = jnp.where(chosen[site], hat, w)
  new: Parameters = unflatten_dict(flat)
  return new


def _each(function: Callable[..., jax.Array], stacked: bool, *arrays: jax.Array) -> jax.Array:
  result: jax.Array = (jax.lax.map(lambda layer: function(*layer), arrays) if stacked
                       else function(*arrays))
  return result


def _bound(scheme: Scheme, w: jax.Array) -> jax.Array:
  return grouped_bound(_grouped(scheme, w), scheme)


def _rounded(scheme: Scheme, w: jax.Array, bound: jax.Array) -> jax.Array:
  w_GxIxO = _grouped(scheme, w)
  hat_GxIxO = weight_grid(w_GxIxO, bound, scheme)(w_GxIxO)
  return hat_GxIxO.reshape(w.shape) if w.ndim == 1 else hat_GxIxO.reshape(w.shape[::-1]).T


def _grouped(scheme: Scheme, w: jax.Array) -> jax.Array:
  """Reshapes to [groups, inputs, outputs], what shares a range being as in a linear map.

  Each row of a table is an output: rows are what has a range of its own where channels have, and
  parts of rows are groups. The gains of a norm have one range.
  """
  if w.ndim == 1:
    return w.reshape(1, -1, 1)
  size = scheme.group_size if scheme.weight_granularity == "group" else w.shape[1]
  return w.T.reshape(-1, size, w.shape[0])
