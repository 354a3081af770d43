"""Scaled residuals without norms."""

from of_jax.models.blocks import Block

NORMS = "none"
BETA = "residual_scale"
MLP = "optional"
NORM_OUTPUTS = "maps"


class ResidualScaled(Block):
  """h = x + lambda MHA(x); y = h + lambda MLP(h) (Dherin & Munn 2025, 2510.03470).

  lambda is 1 / L or 1 / sqrt(L), L the number of blocks, or trained from 0 as in SkipInit
  (De & Smith 2020, 2002.10444): see `model.residual_scale`. `model.beta` sets any other value, 1
  leaves the residuals unscaled. Nothing regulates attention here.
  """
