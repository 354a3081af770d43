"""Telemetry: metrics of activations, attention and gradients, and how they add up.

`measure` gives every activation metric of one array; inside a run, `Telemetry` says which metrics
are watched at which sites. A metric belongs to a family, a file of `families`: statistics that add
up over tokens, batches and devices, and metrics made of them at the end. `METRICS` lists them.
"""

from of_jax.config.declared_metrics import Metric
from of_jax.telemetry.activations import Activations
from of_jax.telemetry.family import Family, group
from of_jax.telemetry.observe import Telemetry, measure
from of_jax.telemetry.registry import METRICS

__all__ = ["METRICS", "Activations", "Family", "Metric", "Telemetry", "group", "measure"]
