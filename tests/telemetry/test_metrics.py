"""Every metric against its plain NumPy float64 definition."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from of_jax.telemetry import METRICS, measure
from of_jax.telemetry.family import finish_all
from of_jax.telemetry.observe import array_telemetry
from of_jax.telemetry.registry import load
from of_jax.telemetry.slots import leave_squares

# Metrics whose definition subtracts numbers near 1: their error is absolute.
ABSOLUTE = ("input_correlation", "input_correlation_rms", "feature_correlation_rms",
            "top_neuron_mean", "dead_fraction")
# A large number less 3: relative where it is large, absolute where it is small.
DIFFERENCES = ("excess_kurtosis_token",)
RELATIVE_ERROR = {"mmr": 1e-4}


Array = np.ndarray


class Tokens:
  """Activations [batch, time, width] in float64, and what several definitions share.

  Attributes:
    x: the tokens, [n, d].
    s2: mean square of each neuron; m2 of all.
  """

  def __init__(self, x_BxTxD: Array):
    self.x_BxTxD = x_BxTxD
    self.n, self.d = x_BxTxD.shape[0] * x_BxTxD.shape[1], x_BxTxD.shape[2]
    self.x = x_BxTxD.reshape(self.n, self.d)
    self.s2, self.m2 = np.mean(self.x ** 2, 0), np.mean(self.x ** 2)

  @property
  def size(self) -> Array:
    return np.abs(self.x)

  @property
  def centred(self) -> Array:
    return self.x - self.x.mean(1, keepdims=True)

  @property
  def scaled(self) -> Array:
    return self.x / np.sqrt(self.m2)

  @functools.cached_property
  def gram(self) -> tuple[float, float]:
    """Sum, and sum of squares, of the off-diagonals of X X^T / d, a thousand tokens at a time."""
    total, squares = 0.0, 0.0
    for rows in np.array_split(np.arange(self.n), max(1, self.n // 1024)):
      gram = self.scaled[rows] @ self.scaled.T / self.d
      gram[np.arange(len(rows)), rows] = 0
      total, squares = total + gram.sum(), squares + np.sum(gram ** 2)
    return total, squares

  @property
  def pairs(self) -> np.float64:
    return np.float64(self.n * (self.n - 1))

  @functools.cached_property
  def active(self) -> Array:
    """1 where an entry is not zero, NaN for a token that is not finite; [batch, time, width]."""
    active = (self.x_BxTxD != 0).astype(float)
    active[~np.isfinite(self.x_BxTxD).all(-1)] = np.nan
    return active

  @property
  def rate(self) -> Array:
    """Share of tokens at which each neuron is active."""
    return self.active.reshape(-1, self.d).mean(0)

  def of_top(self, values: Array) -> Array:
    """`values` of the five largest neurons; NaN where there is no largest."""
    is_known = np.isfinite(self.s2).all() and self.s2[self.top[0]] > 0
    return np.where(is_known, values, np.nan)

  @property
  def top(self) -> Array:
    return np.argsort(-self.s2, kind="stable")[:5]


def _ratio(s2: Array) -> Any:
  return np.mean(s2 ** 2) / np.mean(s2) ** 2


def _feature_correlation_rms(t: Tokens) -> Any:
  features = t.scaled.T @ t.scaled / t.n
  np.fill_diagonal(features, 0)
  return np.sqrt(np.sum(features ** 2) / np.float64(t.d * (t.d - 1)))


def _kurtosis_pooled(t: Tokens) -> Any:
  flat = t.x_BxTxD.reshape(len(t.x_BxTxD), -1)
  flat = flat - flat.mean(1, keepdims=True)
  return np.mean(np.mean(flat ** 4, 1) / np.mean(flat ** 2, 1) ** 2)


def _excess_kurtosis_token(t: Tokens) -> Any:
  variance = np.sum(t.centred ** 2, 1) / np.float64(t.d - 1)
  return np.mean(np.maximum(np.mean(t.x ** 4, 1) / variance ** 2 - 3, 0))


def _active_fraction_batch(t: Tokens) -> Any:
  return np.mean(np.where(np.isnan(t.rate), np.nan, t.rate > 0))


# Metric of activations -> its definition, without regard for cost or overflow. A metric of another
# kind has its own beside the test of its program, see tests/test_completeness.py.
ORACLES: dict[str, Callable[[Tokens], Any]] = {
    "kurtosis": lambda t: _ratio(t.s2),
    "kurtosis_centred": lambda t: _ratio(np.mean(t.centred ** 2, 0)),
    "mmr": lambda t: np.mean(t.size.max(1) / np.median(t.size, axis=1)),
    "rms": lambda t: np.sqrt(t.m2),
    "max_abs": lambda t: t.size.max(),
    "massive_ratio": lambda t: t.size.max() / np.median(t.size),
    "input_correlation": lambda t: t.gram[0] / t.pairs,
    "input_correlation_rms": lambda t: np.sqrt(t.gram[1] / t.pairs),
    "feature_correlation_rms": _feature_correlation_rms,
    "kurtosis_pooled": _kurtosis_pooled,
    "excess_kurtosis_token": _excess_kurtosis_token,
    "top_neurons": lambda t: t.of_top(t.top),
    "top_neuron_share": lambda t: t.of_top(t.s2[t.top] / t.s2.sum()),
    "top_neuron_mean": lambda t: t.of_top(t.x.mean(0)[t.top] / np.sqrt(t.s2[t.top])),
    "active_fraction_token": lambda t: t.rate.mean(),
    "active_fraction_sequence": lambda t: np.mean(t.active.max(1)),
    "active_fraction_batch": _active_fraction_batch,
    "dead_fraction": lambda t: 1 - _active_fraction_batch(t),
    "active_fraction_percentiles": lambda t: np.percentile(t.rate, [5, 25, 50, 75, 95]),
}


# Metric of gradients -> that of activations, of a gradient in their place.
OF_GRADIENTS = {"activation_gradient_kurtosis": "kurtosis", "activation_gradient_rms": "rms"}


def reference(x_BxTxD: Array) -> dict[str, Array]:
  """Every metric of ORACLES, with and without position 0."""
  metrics: dict[str, Array] = {}
  with np.errstate(all="ignore"):
    for suffix, sequences in (("", x_BxTxD), ("_no_first", x_BxTxD[:, 1:])):
      # Nothing is a mean over no tokens: NaN, as many as there would be numbers.
      is_empty = not sequences.size
      tokens = Tokens((x_BxTxD if is_empty else sequences).astype(np.float64))
      for name, oracle in ORACLES.items():
        value = np.asarray(oracle(tokens))
        metrics[name + suffix] = np.where(np.isfinite(value) & (not is_empty), value, np.nan)
  return metrics


def check(measured: dict[str, jax.Array], x_BxTxD: np.ndarray, names: set[str] | None = None
          ) -> None:
  """Compares `names` alone, or every metric. One without an oracle fails in
  tests/test_completeness.py, and not here."""
  expected = reference(x_BxTxD)
  names = set(expected) if names is None else names & expected.keys()
  assert names and names <= measured.keys()
  for name in sorted(names):
    value = measured[name]
    kind = name.removesuffix("_no_first")
    tolerance = RELATIVE_ERROR.get(kind, 1e-5)
    found = np.asarray(value)
    if found.dtype == np.int32:
      found = np.where(found == np.iinfo(np.int32).min, np.nan, found)
    np.testing.assert_allclose(
        found, expected[name], rtol=0 if kind in ABSOLUTE else tolerance,
        atol=tolerance if kind in (*ABSOLUTE, *DIFFERENCES) else 0, err_msg=name)


def statistics_of(x: Any, first: Any = None, weights: Any = None) -> Any:
  if first is None:
    first = np.broadcast_to(np.arange(x.shape[1]) == 0, x.shape[:2])
  return {"array": array_telemetry().observer(weights)("array", x, first)}


# Compiled once a shape: op by op, each call would compile dozens of small programs.
measured = jax.jit(measure)
statistics_of = jax.jit(statistics_of)
finished = jax.jit(lambda statistics: array_telemetry().finish(statistics)["array"])
merged = jax.jit(array_telemetry().merge)


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_large_neuron() -> np.ndarray:
  x = random((4, 32, 48))
  x[..., 7] *= 300
  return x


def massive_first_token() -> np.ndarray:
  x = random((4, 32, 48))
  x[:, 0, 5] = 4000
  return x


CASES = {
    "random": random((4, 32, 48)),
    "odd width": random((4, 32, 47)),
    "width 1": random((4, 8, 1)),
    "width 2": random((4, 8, 2)),
    "wide": random((2, 3, 4096)),
    "many tokens": random((32, 512, 16)),
    "heavy tails": np.random.default_rng(1).standard_t(1.5, (4, 32, 64)).astype(np.float32),
    "one neuron": random((4, 32, 48)) * (np.arange(48) == 3),
    "one large neuron": one_large_neuron(),
    "massive first token": massive_first_token(),
    "correlated": random((4, 32, 48)) + 5 * random((48,), 3),
    "shifted": random((4, 32, 48)) + 10,
    "tiny": random((4, 32, 48)) * np.float32(1e-12),
    "huge": random((4, 32, 48)) * np.float32(1e12),
    "zeros": np.zeros((2, 5, 8), np.float32),
    "zero median": random((2, 5, 8)) * (np.arange(8) < 3),
    "ties": np.round(random((4, 32, 48)) * 2),
    "one token": random((1, 1, 16)),
    "one position": random((4, 1, 16)),
    "one sequence": random((1, 2, 16)),
    "NaN": np.where(np.arange(48) == 3, np.float32(np.nan), random((4, 32, 48))),
    "infinity": np.where(np.arange(48) == 3, np.float32(np.inf), random((4, 32, 48))),
    "NaN in the first": np.where(np.arange(32)[:, None] == 0, np.float32(np.nan),
                                 random((4, 32, 48))),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_numpy(name: str) -> None:
  check(measured(CASES[name]), CASES[name])


@jax.jit
def of_gradients(g_BxTxD: jax.Array) -> dict[str, jax.Array]:
  """As the train step leaves them, of a loss whose gradient is g."""
  x, slot_D = jnp.zeros_like(g_BxTxD), jnp.zeros(g_BxTxD.shape[-1])
  square_D = jax.grad(lambda slot_D: jnp.sum(leave_squares(x, slot_D) * g_BxTxD))(slot_D)
  count = jnp.float32(g_BxTxD[..., 0].size)
  return finish_all(load("gradients"), {"sum_square": square_D, "count": count}, False)


@pytest.mark.parametrize("name", ("random", "heavy tails", "one neuron", "tiny", "huge", "zeros",
                                  "NaN", "infinity"))
def test_gradients_equal_numpy(name: str) -> None:
  expected, found = reference(CASES[name]), of_gradients(CASES[name])
  for metric, same in OF_GRADIENTS.items():
    np.testing.assert_allclose(found[metric], expected[same], rtol=1e-5, err_msg=metric)


@pytest.mark.parametrize("name", ("random", "one large neuron", "massive first token"))
def test_bfloat16_is_measured_in_float32(name: str) -> None:
  x = jnp.asarray(CASES[name], jnp.bfloat16)
  check(measured(x), np.asarray(x, np.float64))


@pytest.mark.parametrize("axes", ((8, 1, 1), (2, 2, 2), (1, 8, 1)))
def test_sharded_equals_numpy(axes: tuple[int, int, int]) -> None:
  mesh = jax.make_mesh(axes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  x = massive_first_token()
  x = np.concatenate([x, 2 * x])
  sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  check(measured(jax.device_put(x, sharding)), x)


@pytest.mark.parametrize("value", (1e25, 1.5e19, -1e37))
def test_a_square_that_overflows_stays_in_its_group(value: float) -> None:
  x = random((4, 32, 48))
  x[:, 0, 5] = value
  metrics, expected = measured(x), reference(x)
  assert np.isnan(metrics["kurtosis_centred"])
  kept = {name for name in metrics if name.endswith("_no_first")} | {"max_abs", "mmr"}
  for name in kept & expected.keys() - {"input_correlation_no_first"}:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, err_msg=name)


def test_statistics_add_up() -> None:
  x = massive_first_token()
  found = finished(merged(statistics_of(x[:2]), statistics_of(x[2:])))
  # A median does not add up: of several batches it is the mean of theirs, by definition.
  medians = [np.median(np.abs(part)) for part in (x[:2], x[2:])]
  assert float(found["massive_ratio"]) == pytest.approx(np.abs(x).max() / np.mean(medians), 1e-5)
  check(found, x, set(found) - {"massive_ratio", "massive_ratio_no_first"})


def test_padding_is_left_out() -> None:
  x = np.concatenate([massive_first_token(), np.full((1, 32, 48), np.inf, np.float32)])
  weights = np.ones((5, 32), np.float32)
  weights[4] = 0
  first = np.broadcast_to(np.arange(32) == 0, (5, 32))
  check(finished(statistics_of(x, first, weights)), x[:4])


def test_layers_are_separate() -> None:
  x = np.stack([random((2, 8, 16)), one_large_neuron()[:2, :8, :16]])
  first = np.broadcast_to(np.arange(8) == 0, (2, 8))
  metrics = finished(jax.jit(jax.vmap(lambda x: statistics_of(x, first)))(x))
  for layer in range(2):
    check({name: value[layer] for name, value in metrics.items()}, x[layer])


def test_signal_propagation_identity() -> None:
  """He et al. 2024, Eq. 5: n^2 d Kurt + off-diagonals of (X^T X)^2 = sum of (X X^T)^2."""
  x = (random((4, 16, 24)) + random((24,), 1)).astype(np.float64)
  flat = x.reshape(-1, 24)
  flat /= np.sqrt(np.mean(flat ** 2))
  n, d = flat.shape
  features, inputs = flat.T @ flat, flat @ flat.T
  off_diagonal = np.sum(features ** 2) - np.sum(np.diag(features) ** 2)
  found = {name: float(value) for name, value in measured(x.astype(np.float32)).items()
           if value.ndim == 0}
  np.testing.assert_allclose(n ** 2 * d * found["kurtosis"] + off_diagonal, np.sum(inputs ** 2),
                             rtol=1e-5)
  # The same of measured values alone: X X^T / d has its diagonal's mean square beside the rest.
  norms = np.mean((np.diag(inputs) / d) ** 2)
  np.testing.assert_allclose(
      found["kurtosis"] + (d - 1) * found["feature_correlation_rms"] ** 2,
      d * (norms / n + (1 - 1 / n) * found["input_correlation_rms"] ** 2), rtol=1e-5)


def test_known_values() -> None:
  ones = measured(np.ones((2, 4, 8), np.float32))
  assert float(ones["kurtosis"]) == 1 and float(ones["mmr"]) == 1
  assert float(ones["input_correlation"]) == pytest.approx(1, abs=1e-6)
  single = measured(np.eye(8, dtype=np.float32)[3] * np.ones((2, 4, 1), np.float32))
  assert float(single["kurtosis"]) == pytest.approx(8)


def test_wants_three_axes() -> None:
  with pytest.raises(ValueError, match=r"\[batch, time, width\]"):
    measure(np.ones((4, 8)))


def test_every_metric_is_described() -> None:
  for metric in METRICS.values():
    assert all((metric.formula, metric.unit, metric.range, metric.reference))
