"""Forward pass of a quantised model. Enters: a network, parameters, tokens, a scheme. Leaves:
bounds of its weights; what the unembedding reads, and the unembedding.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from of_jax.models.functional import Network, Parameters
from of_jax.quantise.numerics import Bounds, Chosen, FindBounds, Quantised, Ranges, rounded_weight
from of_jax.quantise.scheme import SITES, Scheme


def find_bounds(network: Network, params: Parameters, inputs: jax.Array, scheme: Scheme) -> Bounds:
  """Finds the bound of every weight of the blocks, by name; the tokens may be any."""
  kept = network.stream(params, inputs, numerics=FindBounds(scheme))[2]
  return {name: one["bound"] for name, one in kept.items()}


def quantised_stream(network: Network, params: Parameters, batch: Mapping[str, jax.Array],
                     scheme: Scheme, bounds: Bounds, ranges: Ranges, chosen: Chosen | None = None
                     ) -> tuple[jax.Array, jax.Array]:
  """Input of the unembedding [batch, time, width], and the unembedding [width, vocabulary].

  Args:
    chosen: as in Quantised; default the sites of the scheme.
  """
  if chosen is None:
    chosen = {site: site in scheme.sites for site in SITES}
  x_BxTxD, table_DxV, _ = network.stream(
      params, batch["inputs"], batch.get("documents"),
      numerics=Quantised(scheme, bounds, ranges, chosen))
  if chosen["unembedding"] is False:
    return x_BxTxD, table_DxV
  rounded_DxV = rounded_weight(table_DxV, scheme, "unembedding")
  return x_BxTxD, jnp.where(chosen["unembedding"], rounded_DxV, table_DxV)
