"""Optimisers by parameter role, and learning-rate schedules."""

from of_jax.optim.build import build_optimizer
from of_jax.optim.schedules import learning_rate_schedule

__all__ = ["build_optimizer", "learning_rate_schedule"]
