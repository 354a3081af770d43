"""Every quantiser against plain NumPy in float64, on ordinary and on awkward inputs."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.errors import UserError
from of_jax.quantise import quantisers
from of_jax.quantise import scheme as schemes
from of_jax.quantise.numerics import integer_product, weight_bound

_RNG = np.random.default_rng(0)
_RANDOM = _RNG.normal(size=(5, 12))
_OUTLIER = _RANDOM.copy()
_OUTLIER[2, 3] = 500
_NAN = _RANDOM.copy()
_NAN[1, 2], _NAN[3, 4] = np.nan, -np.inf
INPUTS = {"random": _RANDOM, "zeros": np.zeros((5, 12)), "one value": np.full((5, 12), -0.7),
          "outlier": _OUTLIER, "not finite": _NAN, "nothing finite": np.full((5, 12), np.nan)}


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
  with jax.enable_x64(True):
    yield


def plain_range(x: np.ndarray, how: str, bits: int) -> tuple[float, float]:
  finite = x[np.isfinite(x)]
  if not finite.size:
    return 0.0, 0.0
  if how == "percentile":
    low, high = np.percentile(finite, [100 - 99.999, 99.999])
    return float(low), float(high)
  low, high = float(finite.min()), float(finite.max())
  if how == "mse":
    errors = [np.sum((plain_asymmetric(finite, low * f, high * f, bits) - finite) ** 2)
              for f in quantisers.FRACTIONS]
    best = quantisers.FRACTIONS[int(np.argmin(errors))]
    return low * best, high * best
  return low, high


def plain_asymmetric(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
  low, high = min(low, 0), max(high, 0)
  scale = (high - low) / (2 ** bits - 1) or 1
  zero = np.round(-low / scale)
  with np.errstate(invalid="ignore"):
    nearest = (np.clip(np.round(x / scale) + zero, 0, 2 ** bits - 1) - zero) * scale
  return np.where(np.isfinite(x), nearest, x)


def plain_symmetric(w: np.ndarray, bound: float, bits: int) -> np.ndarray:
  most = 2 ** (bits - 1) - 1
  scale = bound / most or 1
  with np.errstate(invalid="ignore"):
    nearest = np.clip(np.round(w / scale), -most, most) * scale
  return np.where(np.isfinite(w), nearest, w)


def plain_bound(w: np.ndarray, how: str, bits: int) -> float:
  finite = np.abs(w[np.isfinite(w)])
  if not finite.size:
    return 0.0
  if how == "percentile":
    return float(np.percentile(finite, 99.999))
  errors = [np.sum((plain_symmetric(w[np.isfinite(w)], finite.max() * f, bits)
                    - w[np.isfinite(w)]) ** 2) for f in quantisers.FRACTIONS]
  return float(finite.max() * (quantisers.FRACTIONS[int(np.argmin(errors))] if how == "mse" else 1))


@pytest.mark.parametrize("how", schemes.RANGES["activation"])
def test_activations_are_numpys(how: str) -> None:
  for name, x in INPUTS.items():
    for bits in (4, 8):
      low, high = quantisers.activation_range(jnp.asarray(x), (0, 1), bits, how)
      expected = plain_range(x, how, bits)
      np.testing.assert_allclose([low.item(), high.item()], expected, rtol=1e-12, err_msg=name)
      np.testing.assert_allclose(quantisers.asymmetric(low, high, bits)(jnp.asarray(x)),
                                 plain_asymmetric(x, *expected, bits), rtol=1e-12, atol=1e-14,
                                 err_msg=name)


@pytest.mark.parametrize("how", schemes.RANGES["weight"])
def test_weights_are_numpys(how: str) -> None:
  for name, w in INPUTS.items():
    for granularity in schemes.GRANULARITIES["weight"]:
      scheme = schemes.Scheme(weight_bits=4, weight_granularity=granularity, weight_range=how,
                              group_size=4)
      w = w.T  # [12, 5]: three groups of four inputs.
      bound = weight_bound(jnp.asarray(w), scheme, name)
      rows = w.reshape(bound.shape[0], -1, w.shape[1])
      parts = ([(slice(None),) * 3] if granularity == "tensor" else
               [(slice(g, g + 1), slice(None), slice(o, o + 1))
                for g in range(rows.shape[0]) for o in range(rows.shape[2])])
      expected = rows.copy()
      for part in parts:
        expected[part] = plain_symmetric(rows[part], plain_bound(rows[part], how, 4), 4)
      found = quantisers.symmetric(bound, 4)(jnp.asarray(rows))
      np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14,
                                 err_msg=f"{name}, {granularity}")
      w = w.T


def test_batches_combine() -> None:
  old, new = (jnp.asarray(-1.0), jnp.asarray(2.0)), (jnp.asarray(-3.0), jnp.asarray(1.0))
  for how, expected in (("min_max", (-3, 2)), ("running_min_max", (-1.2, 1.9)),
                        ("percentile", (-1.2, 1.9))):
    np.testing.assert_allclose(quantisers.combine(old, new, how), expected, rtol=1e-12)


@pytest.mark.parametrize("granularity", schemes.GRANULARITIES["weight"])
@pytest.mark.parametrize("by_token", (False, True))
def test_the_integer_product_is_that_of_the_rounded_numbers(granularity: str, by_token: bool
                                                            ) -> None:
  x, w = jnp.asarray(_OUTLIER), jnp.asarray(_RNG.normal(size=(12, 7)))
  scheme = schemes.Scheme(weight_granularity=granularity, group_size=4)
  w_grid = quantisers.symmetric(weight_bound(w, scheme, "w"), 8)
  x_grid = quantisers.asymmetric(*quantisers.extremes(x, (-1,) if by_token else (0, 1)), 8)
  rounded = w_grid(w.reshape(w_grid.scale.shape[0], -1, 7)).reshape(w.shape)
  np.testing.assert_allclose(integer_product(x, x_grid, w, w_grid),
                             np.asarray(x_grid(x)) @ np.asarray(rounded), rtol=1e-11, atol=1e-11)
  broken = np.asarray(integer_product(x.at[1, 2].set(jnp.nan), x_grid, w, w_grid))
  assert np.isnan(broken[1]).all() and np.isfinite(np.delete(broken, 1, 0)).all()


@pytest.mark.parametrize("fields, part", (
    ({"weight_bits": 5}, "weight_bits=5"), ({"weight_range": "msee"}, "did you mean mse"),
    ({"sites": ()}, "nothing is left"), ({"sites": ("resid_prey",)}, "did you mean resid_pre"),
    ({"group_size": 0}, "group_size=0"),
    ({"activation_granularity": "token"}, "activation_range=percentile"),
    ({"arithmetic": "integer", "weight_bits": 16}, "weight_bits=16"),
    ({"arithmetic": "integer", "activation_granularity": "channel"}, "choose tensor or token")))
def test_bad_schemes_are_one_clear_line(fields: dict, part: str) -> None:
  with pytest.raises(UserError, match=part) as caught:
    schemes.check(schemes.Scheme(**fields))
  assert "\n" not in str(caught.value)


def test_groups_divide_the_inputs() -> None:
  with pytest.raises(UserError, match="group_size=5: does not divide the 12 inputs of w"):
    weight_bound(jnp.ones((12, 3)), schemes.Scheme(weight_granularity="group", group_size=5), "w")
