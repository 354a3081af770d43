"""Quantisation after training: the sites and ranges (`scheme`), the arithmetic (`quantisers`)
and how it enters a forward pass (`numerics`). of_jax.analysis.quantisation measures what it costs.
"""

from of_jax.quantise.scheme import SITES, Scheme

__all__ = ["SITES", "Scheme"]
