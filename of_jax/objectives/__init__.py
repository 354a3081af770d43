"""Objectives of training: losses, terms added to them, and one task a kind of model."""

from of_jax.objectives.losses import Sums, cross_entropy, squared_error

__all__ = ["Sums", "cross_entropy", "squared_error"]
