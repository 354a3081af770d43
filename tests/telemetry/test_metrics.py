"""Every metric against its plain NumPy float64 definition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from of_jax.telemetry import METRICS, measure
from of_jax.telemetry.families.gradients import leave_squares
from of_jax.telemetry.family import finish_all
from of_jax.telemetry.observe import array_telemetry
from of_jax.telemetry.registry import load

# Metrics whose definition subtracts numbers near 1: their error is absolute.
ABSOLUTE = ("input_correlation", "input_correlation_rms", "feature_correlation_rms",
            "top_neuron_mean", "dead_fraction")
# A large number less 3: relative where it is large, absolute where it is small.
DIFFERENCES = ("excess_kurtosis_token",)
RELATIVE_ERROR = {"mmr": 1e-4}


def reference(x_BxTxD: np.ndarray) -> dict[str, np.ndarray]:
  """The definitions of the design, in float64, without regard for cost or overflow."""
  metrics: dict[str, np.ndarray] = {}
  with np.errstate(all="ignore"):
    for suffix, sequences in (("", x_BxTxD), ("_no_first", x_BxTxD[:, 1:])):
      for name, value in of_tokens(sequences.astype(np.float64)).items():
        metrics[name + suffix] = np.where(np.isfinite(value), value, np.nan)
  return metrics


def of_tokens(x_BxTxD: np.ndarray) -> dict[str, np.ndarray]:
  """Without `_no_first`. Nothing is a mean over no tokens."""
  width = x_BxTxD.shape[-1]
  x = x_BxTxD.reshape(-1, width)
  n, d = x.shape
  if not n:
    empty = {name: np.array(np.nan) for name in METRICS}
    lists = {"active_fraction_percentiles": 5, "top_neurons": min(5, d),
             "top_neuron_share": min(5, d), "top_neuron_mean": min(5, d)}
    return {name: empty[name] for name in ACTIVATION_METRICS} | {
        name: np.full(length, np.nan) for name, length in lists.items()}
  size, s2, m2 = np.abs(x), np.mean(x ** 2, 0), np.mean(x ** 2)
  centred = x - x.mean(1, keepdims=True)
  s2_centred = np.mean(centred ** 2, 0)
  scaled = x / np.sqrt(m2)
  total, squares = 0.0, 0.0
  for rows in np.array_split(np.arange(n), max(1, n // 1024)):
    gram = scaled[rows] @ scaled.T / d
    gram[np.arange(len(rows)), rows] = 0
    total, squares = total + gram.sum(), squares + np.sum(gram ** 2)
  features = scaled.T @ scaled / n
  np.fill_diagonal(features, 0)
  flat = x_BxTxD.reshape(len(x_BxTxD), -1)
  flat = flat - flat.mean(1, keepdims=True)
  top = np.argsort(-s2, kind="stable")[:5]
  is_known = np.isfinite(s2).all() and s2[top[0]] > 0
  active = (x_BxTxD != 0).astype(float)
  active[~np.isfinite(x_BxTxD).all(-1)] = np.nan
  rate = active.reshape(-1, d).mean(0)
  batch = np.mean(np.where(np.isnan(rate), np.nan, rate > 0))
  return {
      "kurtosis": np.mean(s2 ** 2) / np.mean(s2) ** 2,
      "kurtosis_centred": np.mean(s2_centred ** 2) / np.mean(s2_centred) ** 2,
      "mmr": np.mean(size.max(1) / np.median(size, axis=1)),
      "rms": np.sqrt(m2),
      "max_abs": size.max(),
      "massive_ratio": size.max() / np.median(size),
      "input_correlation": total / np.float64(n * (n - 1)),
      "input_correlation_rms": np.sqrt(squares / np.float64(n * (n - 1))),
      "feature_correlation_rms": np.sqrt(np.sum(features ** 2) / np.float64(d * (d - 1))),
      "kurtosis_pooled": np.mean(np.mean(flat ** 4, 1) / np.mean(flat ** 2, 1) ** 2),
      "excess_kurtosis_token": np.mean(np.maximum(
          np.mean(x ** 4, 1) / (np.sum(centred ** 2, 1) / np.float64(d - 1)) ** 2 - 3, 0)),
      "top_neurons": np.where(is_known, top, np.nan),
      "top_neuron_share": np.where(is_known, s2[top] / s2.sum(), np.nan),
      "top_neuron_mean": np.where(is_known, x.mean(0)[top] / np.sqrt(s2[top]), np.nan),
      "active_fraction_token": rate.mean(),
      "active_fraction_sequence": np.mean(active.max(1)),
      "active_fraction_batch": batch,
      "dead_fraction": 1 - batch,
      "active_fraction_percentiles": np.percentile(rate, [5, 25, 50, 75, 95]),
  }


ACTIVATION_METRICS = tuple(name for name, metric in METRICS.items() if metric.has_no_first)


def check(measured: dict[str, jax.Array], x_BxTxD: np.ndarray, names: set[str] | None = None
          ) -> None:
  """Of `names` alone, or of every metric."""
  expected = reference(x_BxTxD)
  if names is not None:
    measured, expected = ({name: of[name] for name in names} for of in (measured, expected))
  assert measured.keys() == expected.keys()
  for name, value in measured.items():
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
  expected = reference(CASES[name])
  for metric, value in of_gradients(CASES[name]).items():
    np.testing.assert_allclose(value, expected[metric.removeprefix("activation_gradient_")],
                               rtol=1e-5, err_msg=metric)


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
  for name in kept - {"input_correlation_no_first"}:
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
