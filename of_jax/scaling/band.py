"""The band that the curve of a new run stays in, by step, and how leaving it is noticed.

Enters: curves of finished runs of smaller sizes. Leaves: at each logged step the band for a run of
another size; and of a run's curve where it leaves that.

At each step the logarithm of the metric is regressed on that of size, over the finished runs. Two
things are compared with what a new run should show, by Student's t with n - 2 degrees: its level,
and its jump, which is the mean of its last three values less that of the ten before, in logs; a
jump does not ask that seeds agree in level. The level of confidence is divided over all steps and
both, so that a run like the others leaves its band anywhere with a probability of at most 1 in 20,
however its values depend on each other, as far as noise is normal and the trend a power of size.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from of_jax.analysis.runs import Run
from of_jax.scaling.intervals import student
from of_jax.scaling.jets import Floats
from of_jax.scaling.targets import Target

# Less than 1 in 20, which leaves room for tails that are heavier than normal.
FALSE_ALARMS = 0.03
# Values of a run of which the mean is compared with that of values before them.
LAST, BEFORE = 3, 10
_LEAST_DEGREES = 2
KINDS = ("level", "jump")


def make(target: Target, runs: Mapping[str, Run], sizes: Mapping[str, float], size: float
         ) -> dict[str, Any] | None:
  """Makes the band of a run of `size`; None where curves are too few or share no steps.

  Returns:
    `metric` in words, `steps`, and of "level" and of "jump": `centre` and `half_width` by step, in
    logs; None at a step where there is none.
  """
  curve = target.while_training()
  if curve is None:
    return None
  curves = {name: dict(zip(*curve.by_step(run), strict=True)) for name, run in runs.items()}
  steps = sorted(set.intersection(*({*one} for one in curves.values()))) if curves else []
  values = np.array([[one[step] for step in steps] for one in curves.values()], np.float64)
  if len({sizes[name] for name in curves}) < 2 or not steps:
    return None
  return {"metric": curve.says_curve(), "runs": len(curves), "steps": [int(step) for step in steps],
          **of_values(values, np.array([sizes[name] for name in curves]), size)}


def of_values(values: Floats, sizes: Floats, size: float) -> dict[str, Any]:
  """Makes the two bands of curves [runs, steps] of runs of `sizes`."""
  with np.errstate(divide="ignore", invalid="ignore"):
    logs = np.log(values)
  return {"level": _band(logs, sizes, size), "jump": _band(jumps(logs), sizes, size)}


def jumps(logs: Floats) -> Floats:
  """Means of the last three values less those of up to ten before, along the last axis; NaN where
  there are fewer than three of either."""
  found = np.full(logs.shape, np.nan)
  for t in range(2 * LAST - 1, logs.shape[-1]):
    first = max(0, t + 1 - LAST - BEFORE)
    found[..., t] = (logs[..., t + 1 - LAST:t + 1].mean(-1)
                     - logs[..., first:t + 1 - LAST].mean(-1))
  return found


def _band(series: Floats, sizes: Floats, size: float) -> dict[str, list[float | None]]:
  """Regresses each column on log size, and forecasts a new run's."""
  count, steps = series.shape
  degrees = count - 2
  if degrees < _LEAST_DEGREES:
    return {"centre": [None] * steps, "half_width": [None] * steps}
  x = np.log(sizes)
  design = np.stack([np.ones(count), x - x.mean()], 1)
  new = np.array([1.0, np.log(size) - x.mean()])
  gram = np.linalg.inv(design.T @ design)
  slopes = gram @ design.T @ series
  residuals = series - design @ slopes
  spread = np.sqrt((residuals ** 2).sum(0) / degrees * (1 + new @ gram @ new))
  quantile = student(degrees, 1 - FALSE_ALARMS / (len(KINDS) * steps))
  centre, half = new @ slopes, quantile * spread
  known = np.isfinite(centre) & np.isfinite(half)
  return {"centre": [float(v) if k else None for v, k in zip(centre, known, strict=True)],
          "half_width": [float(v) if k else None for v, k in zip(half, known, strict=True)]}


def leaving(band: Mapping[str, Any], steps: Iterable[int], values: Iterable[float]
            ) -> list[dict[str, Any]]:
  """Finds where a run's curve first leaves its band, one entry of each kind at most.

  Returns:
    Objects of `step`, `kind`, `value` (of the metric), and `low`, `high`: the band at that step,
    of the value or, of a jump, of the factor of which `factor` is what was seen.
  """
  at = dict(zip(steps, values, strict=True))
  shared = [step for step in band["steps"] if step in at]
  if shared != band["steps"][:len(shared)]:
    return []
  with np.errstate(divide="ignore", invalid="ignore"):
    logs = np.log(np.array([at[step] for step in shared], np.float64))
  found = []
  for kind, series in (("level", logs), ("jump", jumps(logs))):
    for i, value in enumerate(series):
      centre, half = (band[kind][part][i] for part in ("centre", "half_width"))
      if centre is None or half is None or not np.isfinite(value) or abs(value - centre) <= half:
        continue
      found.append({"step": int(shared[i]), "kind": kind, "value": float(at[shared[i]]),
                    "low": float(np.exp(centre - half)), "high": float(np.exp(centre + half)),
                    **({"factor": float(np.exp(value))} if kind == "jump" else {})})
      break
  return sorted(found, key=lambda one: one["step"])
