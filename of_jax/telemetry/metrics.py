"""The registry of activation metrics: id, formula, unit, range, reference, and the arithmetic.

Enters: sufficient statistics over all tokens of interest. Leaves: float32 metrics, NaN where a
metric is undefined. X is tokens x width; s2_j is the mean over tokens of X_tj^2.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from of_jax.telemetry.statistics import FIRST, REST, Statistics, merge

NO_FIRST = "_no_first"


@dataclasses.dataclass(frozen=True)
class Metric:
  """One metric of an activation site.

  Attributes:
    id: the public name; with `_no_first` behind it, the metric without position 0.
    formula, unit, range, reference: for people.
    finish: statistics without the axis of groups, [..., width] or [...] -> [...].
  """

  id: str
  formula: str
  unit: str
  range: str
  reference: str
  finish: Callable[[Statistics], jax.Array]


def _kurtosis_of(total_square: jax.Array) -> jax.Array:
  # Scaled to a largest entry of 1, so that the fourth power can neither overflow nor vanish.
  share = total_square / jnp.max(total_square, -1, keepdims=True)
  return jnp.mean(jnp.square(share), -1) / jnp.square(jnp.mean(share, -1))


def _kurtosis(s: Statistics) -> jax.Array:
  return _kurtosis_of(s["sum_square"])


def _kurtosis_centred(s: Statistics) -> jax.Array:
  return _kurtosis_of(s["sum_square_centred"])


def _mmr(s: Statistics) -> jax.Array:
  return s["sum_max_over_median"] / s["count"]


def _rms(s: Statistics) -> jax.Array:
  return jnp.sqrt(jnp.mean(s["sum_square"] / s["count"][..., None], -1))


def _max_abs(s: Statistics) -> jax.Array:
  return s["max_abs"]


def _input_correlation(s: Statistics) -> jax.Array:
  # sum_{a != b} <x_a, x_b> = |sum_a x_a|^2 - sum_a |x_a|^2, over n (n - 1) times the mean square
  # norm. Both sums are scaled by the largest neuron's, so that the square cannot overflow.
  largest = jnp.max(s["sum_square"], -1, keepdims=True)
  scaled_sum = s["sum"] / jnp.sqrt(largest)
  ratio = jnp.sum(jnp.square(scaled_sum), -1) / jnp.sum(s["sum_square"] / largest, -1)
  pairs = jnp.where(s["count"] > 1, s["count"] - 1, jnp.nan)
  return (ratio - 1) / pairs


_HE = "He et al. 2024, 2405.19279, Sec. 2"

METRICS: dict[str, Metric] = {metric.id: metric for metric in (
    Metric("kurtosis", "mean_j(s2_j^2) / mean_j(s2_j)^2", "ratio", "1 to d", _HE, _kurtosis),
    Metric("kurtosis_centred", "kurtosis after subtracting each token's mean over the width",
           "ratio", "1 to d", f"{_HE}, Fig. 15", _kurtosis_centred),
    Metric("mmr", "mean over tokens of max_j |X_tj| / median_j |X_tj|", "ratio", "1 and above",
           _HE, _mmr),
    Metric("rms", "sqrt(mean X^2)", "activation", "0 and above", _HE, _rms),
    Metric("max_abs", "max |X|", "activation", "0 and above", "Sun et al. 2024, 2402.17762",
           _max_abs),
    Metric("input_correlation", "mean off-diagonal of X X^T / d, X scaled to mean square 1",
           "correlation", "-1/(n-1) to 1", f"{_HE}, Eq. 4", _input_correlation),
)}


def finish(statistics: Statistics) -> dict[str, jax.Array]:
  """Every metric of one site, with and without position 0.

  Args:
    statistics: as `sufficient_statistics` returns them, with any leading axes (layers) before
      the axis of groups.

  Returns:
    id -> float32 [leading axes]. NaN where undefined: all zeros, no token, for a correlation one
    token, a zero median, or a value that is not finite.
  """
  everything = {name: _over_groups(name, value) for name, value in statistics.items()}
  rest = {name: _take(name, value, REST) for name, value in statistics.items()}
  finished = {}
  for metric in METRICS.values():
    finished[metric.id] = metric.finish(everything)
    finished[metric.id + NO_FIRST] = metric.finish(rest)
  return {name: jnp.where(jnp.isfinite(value), value, jnp.nan)
          for name, value in finished.items()}


def _group_axis(name: str) -> int:
  return -2 if name in ("sum", "sum_square", "sum_square_centred") else -1


def _over_groups(name: str, value: jax.Array) -> jax.Array:
  groups = jnp.moveaxis(value, _group_axis(name), 0)
  return merge({name: groups[FIRST]}, {name: groups[REST]})[name]


def _take(name: str, value: jax.Array, group: int) -> jax.Array:
  return jnp.take(value, group, axis=_group_axis(name))
