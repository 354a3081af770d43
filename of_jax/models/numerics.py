"""Numbers that a forward pass computes with: the hook for quantisation."""

from typing import Any

import jax

from of_jax.models.parameter import Linear


class Numerics:
  """Hook at a model's sites and linear maps, to compute there with other numbers.

  None in its place, as in training, leaves the program as it is. Sites and names are public, see
  of_jax.quantise.scheme. A method also returns what to keep of the place, a tree of arrays that
  come out stacked by layer like a probe's statistics, or None.
  """

  def activation(self, site: str, x: jax.Array, layer: jax.Array | int
                 ) -> tuple[jax.Array, dict[str, Any] | None]:
    """Replaces the activations of a site, [..., neurons]; by default by themselves."""
    del site, layer
    return x, None

  def product(self, name: str, site: str, linear: Linear, x: jax.Array, layer: jax.Array | int
              ) -> tuple[jax.Array, dict[str, Any] | None]:
    """Computes linear(x), of the linear map `name` that reads `site`."""
    del name, site, layer
    return linear(x), None
