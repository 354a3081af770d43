"""What is measured of activations, and how it adds up.

`measure` gives every activation metric of one array; inside a run, `Telemetry` says which sites
are watched and turns their statistics into metrics.
"""

from of_jax.telemetry.metrics import METRICS, Metric, finish
from of_jax.telemetry.observe import LEVELS, Telemetry, measure
from of_jax.telemetry.statistics import merge, sufficient_statistics

__all__ = ["LEVELS", "METRICS", "Metric", "Telemetry", "finish", "measure", "merge",
           "sufficient_statistics"]
