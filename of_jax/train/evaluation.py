"""The evaluation step: sums over one batch, their total over several, and the metrics of it."""

import dataclasses

import jax
import jax.numpy as jnp

from of_jax.models.functional import Parameters
from of_jax.objectives.losses import Sums
from of_jax.telemetry.observe import SiteStatistics, Telemetry
from of_jax.train.objective import Objective
from of_jax.train.types import Batch, Metrics

# Sums of the objective's parts over tokens, and statistics.
Total = tuple[Sums, SiteStatistics]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """Evaluates a model on a set of batches.

  Attributes:
    objective: of the config.
    telemetry: what is measured.
  """

  objective: Objective
  telemetry: Telemetry

  def evaluate(self, params: Parameters, batch: Batch) -> Total:
    """Sums over one batch, without dropout."""
    return self.objective.sums(params, batch, None, self.telemetry, training=False)[1]

  def add(self, a: Total, b: Total) -> Total:
    """Combines the sums of both."""
    return jax.tree.map(jnp.add, a[0], b[0]), self.telemetry.merge(a[1], b[1])

  def finish(self, total: Total) -> Metrics:
    """Makes metrics of the sums over all batches, means over tokens."""
    totals, statistics = total
    means = {name: total / totals["count"] for name, total in totals.items() if name != "count"}
    return {**means, "telemetry": self.telemetry.finish(statistics)}
