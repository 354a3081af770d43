"""Forward pass of a quantised model. Enters: a network, parameters, tokens, a scheme. Leaves:
bounds of its weights and ranges; what the unembedding reads, and the unembedding.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from of_jax.models.functional import Network, Parameters
from of_jax.quantise import parameters
from of_jax.quantise.numerics import (
    Bounds,
    Chosen,
    FindBounds,
    FindRangesQuantised,
    Quantised,
    Ranges,
    rounded_weight,
)
from of_jax.quantise.scheme import SITES, Scheme


def find_bounds(network: Network, params: Parameters, inputs: jax.Array, scheme: Scheme) -> Bounds:
  """Finds the bound of every weight, those of the blocks by name and others by their path; the
  tokens may be any."""
  kept = network.stream(params, inputs, numerics=FindBounds(scheme))[2]
  return {**{name: one["bound"] for name, one in kept.items()},
          **parameters.bounds(network, params, scheme)}


def find_ranges(network: Network, params: Parameters, batch: Mapping[str, jax.Array],
                scheme: Scheme, bounds: Bounds, ranges: Ranges, chosen: Chosen,
                is_first: jax.Array) -> Ranges:
  """Finds the ranges of the quantised model's activations after one batch more, see
  FindRangesQuantised."""
  kept = network.stream(
      parameters.rounded(network, params, scheme, bounds, chosen), batch["inputs"],
      batch.get("documents"),
      numerics=FindRangesQuantised(scheme, bounds, ranges, chosen, is_first))[2]
  return {site: (one["low"], one["high"]) for site, one in kept.items()}


def quantised_stream(network: Network, params: Parameters, batch: Mapping[str, jax.Array],
                     scheme: Scheme, bounds: Bounds, ranges: Ranges, chosen: Chosen | None = None
                     ) -> tuple[jax.Array, jax.Array]:
  """Input of the unembedding [batch, time, width], and the unembedding [width, vocabulary].

  The unembedding is the parameters' own, also where it is tied to a table that is quantised.

  Args:
    chosen: as in Quantised; default the sites of the scheme.
  """
  if chosen is None:
    chosen = {site: site in scheme.sites for site in SITES}
  x_BxTxD = network.stream(
      parameters.rounded(network, params, scheme, bounds, chosen), batch["inputs"],
      batch.get("documents"), numerics=Quantised(scheme, bounds, ranges, chosen))[0]
  table_DxV = network.unembedding_table(params)
  if chosen["unembedding"] is False:
    return x_BxTxD, table_DxV
  rounded_DxV = rounded_weight(table_DxV, scheme, "unembedding")
  return x_BxTxD, jnp.where(chosen["unembedding"], rounded_DxV, table_DxV)
