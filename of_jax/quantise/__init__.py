"""Quantisation after training: what is quantised and how (`scheme`), the arithmetic (`quantisers`)
and how it enters a forward pass (`numerics`). of_jax.analysis.quantisation measures what it costs.
"""
