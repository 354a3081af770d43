"""Sizes at which float32 has no squares or no numbers: right or null, never another number."""

from typing import Any

import jax
import numpy as np
import pytest

from of_jax.telemetry.family import UNDEFINED
from tests.telemetry.test_metrics import (
    CASES,
    OF_GRADIENTS,
    check,
    finished,
    measured,
    of_gradients,
    random,
    reference,
    statistics_of,
)

# Made of squares, which float32 loses below an RMS of 2^-52.
OF_SQUARES = {"kurtosis", "kurtosis_centred", "rms", "input_correlation", "top_neurons",
              "top_neuron_share", "top_neuron_mean", "input_correlation_rms",
              "feature_correlation_rms"}


def is_null(value: Any) -> np.ndarray:
  """True in the places that are null in JSON."""
  value = np.asarray(value)
  return value == UNDEFINED if value.dtype == np.int32 else np.isnan(value)


def check_or_null(found: dict[str, jax.Array], x_BxTxD: np.ndarray, nulls: set[str]) -> None:
  """Compares every metric but `nulls`, which are null in every place. Of the largest neurons those
  behind the first may be null too."""
  for name in nulls:
    assert np.all(is_null(found[name])), name
  expected, left = reference(x_BxTxD), {}
  for name in set(found) - nulls:
    left[name] = np.asarray(found[name])
    if name.startswith("top_neuron") and not is_null(left[name][0]):
      left[name] = np.where(is_null(left[name]), expected[name], left[name])
  check(left, x_BxTxD, set(left))


@pytest.mark.parametrize("exponent", (-15, -16.5, -18, -19, -25))
@pytest.mark.parametrize("name", ("random", "one large neuron", "massive first token"))
def test_squares_that_are_lost_are_null(name: str, exponent: float) -> None:
  x = (CASES[name] * 10.0 ** exponent).astype(np.float32)
  is_lost = {suffix: np.sqrt(np.mean(np.square(part, dtype=np.float64))) < 2.0 ** -52
             for suffix, part in (("", x), ("_no_first", x[:, 1:]))}
  assert is_lost["_no_first"] == (exponent < -15) or name == "one large neuron"
  check_or_null(measured(x), x, {metric + suffix for suffix, lost in is_lost.items() if lost
                                 for metric in OF_SQUARES})


@pytest.mark.parametrize("exponent", (-37, -40))
def test_numbers_that_are_lost_are_null(exponent: float) -> None:
  """Only max_abs remains where differences and halves of entries are no float32."""
  found = measured((CASES["random"] * 10.0 ** exponent).astype(np.float32))
  ratios = (OF_SQUARES | {"kurtosis_pooled", "excess_kurtosis_token", "massive_ratio"}) - {"rms"}
  assert all(np.all(is_null(found[name])) for name in ratios)


@pytest.mark.parametrize("exponent", (19, 30))
def test_squares_that_overflow_are_null(exponent: float) -> None:
  x = (CASES["random"] * 10.0 ** exponent).astype(np.float32)
  found = measured(x)
  names = OF_SQUARES | {"kurtosis_pooled", "excess_kurtosis_token"}
  check_or_null(found, x, {name + suffix for name in names for suffix in ("", "_no_first")})


def test_layers_of_all_sizes() -> None:
  """A layer whose squares are lost says nothing of another."""
  first = np.broadcast_to(np.arange(32) == 0, (4, 32))
  x = np.stack([CASES["random"] * np.float32(size) for size in (1, 1e-20, 1e-10, 0, 1e20)])
  metrics = finished(jax.jit(jax.vmap(lambda x: statistics_of(x, first)))(x))
  nulls = {name + suffix for name in OF_SQUARES for suffix in ("", "_no_first")}
  for layer in range(len(x)):
    found = {name: value[layer] for name, value in metrics.items()}
    large = {f"{name}{end}" for name in ("kurtosis_pooled", "excess_kurtosis_token")
             for end in ("", "_no_first")}
    check_or_null(found, x[layer], {1: nulls, 4: nulls | large}.get(layer, set()))
  assert metrics["rms"][3] == 0, "zeros are 0"


def test_neurons_of_all_sizes() -> None:
  """Three neurons stand out of what is lost: they are listed, and no order is made up behind."""
  x = random((4, 32, 48)) * np.where(np.arange(48) % 20 == 7, 1e-3, 1e-21)
  found = measured(x.astype(np.float32))
  expected = reference(x.astype(np.float32))
  np.testing.assert_array_equal(found["top_neurons"][:3], expected["top_neurons"][:3])
  np.testing.assert_array_equal(found["top_neurons"][3:], [UNDEFINED] * 2)
  for name in ("top_neuron_share", "top_neuron_mean"):
    np.testing.assert_allclose(found[name][:3], expected[name][:3], rtol=1e-4, atol=1e-6)
    assert np.all(np.isnan(found[name][3:]))
  for name in ("kurtosis", "kurtosis_centred", "rms", "input_correlation_rms"):
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exponent", (-15, -17, -19, -30))
def test_gradients_whose_squares_are_lost_are_null(exponent: float) -> None:
  g = (CASES["one large neuron"] * 10.0 ** exponent / 50).astype(np.float32)
  expected, found = reference(g), of_gradients(g)
  for metric, same in OF_GRADIENTS.items():
    if exponent >= -15:
      np.testing.assert_allclose(found[metric], expected[same], rtol=1e-5, err_msg=metric)
    else:
      assert np.isnan(found[metric]), metric
