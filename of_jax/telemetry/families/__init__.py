"""Families of metrics: one class a file, see of_jax.telemetry.family."""
