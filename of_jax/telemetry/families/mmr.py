"""Largest over median, token by token."""

import jax

from of_jax.telemetry.activations import Activations
from of_jax.telemetry.family import Family, Statistics, group

KIND = "activations"
SITES = ()
EVERY = 0
METRICS = {
    "mmr": ("basic", "mean over tokens of max_j |X_tj| / median_j |X_tj|", "ratio", "1 and above",
            "He et al. 2024, 2405.19279, Sec. 2"),
}


class MaxMedianRatio(Family):
  """Ratios by token; of an even width the median is the mean of both middle values, to 1e-4."""

  def statistics(self, a: Activations) -> Statistics:
    return {"count": a.count_G, "sum_ratio": a.sum_ratio_G}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    return {"mmr": group(s, "sum_ratio", no_first) / group(s, "count", no_first)}
