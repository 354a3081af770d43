"""Fits: known laws come back, minima are minima, and what cannot be told is said."""

import numpy as np
import pytest
from scipy import optimize

from of_jax.errors import UserError
from of_jax.scaling import identify
from of_jax.scaling import law as laws
from of_jax.scaling.analysis import Options, analyse
from of_jax.scaling.solve import Data, loss_of, residuals_of, solve
from of_jax.scaling.starts import fit
from of_jax.scaling.table import Table

CHINCHILLA = np.array([1.69, 406.4, 0.34, 410.7, 0.28])


def data_of(columns, y):
  return Data(columns, np.log(y), np.ones_like(y), np.ones_like(y))


def table_of(columns, y):
  return Table(tuple(map(str, range(y.size))), columns, y, "y", "made", {}, (), "here")


def noisy(columns, law, truth, noise, seed=0):
  clean = law.formula.value(np.array(truth), columns)
  return clean * np.exp(noise * np.random.default_rng(seed).standard_normal(clean.size))


def test_the_chinchilla_law_comes_back_from_a_crossed_grid():
  n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
  columns = {"parameters": n, "tokens": d}
  law = laws.make("chinchilla", columns)
  found = fit(law, data_of(columns, 1.69 + 406.4 / n ** 0.34 + 410.7 / d ** 0.28), 1e-3)
  np.testing.assert_allclose(found.parameters, CHINCHILLA, rtol=1e-6)
  assert not identify.flat(found) and not identify.swapped(found)


@pytest.mark.parametrize("name, truth", (
    ("power", [0.5, -0.3]), ("power_offset", [0.5, 0.8, 3.0]), ("saturating", [1e-3, 0.9]),
    ("broken", [0.5, 0.8, 300.0, 0.3]), ("a * exp(-b * width) + c", [5.0, 0.004, 1.0]),
    ("a + b * log(width)", [3.0, -0.3])))
def test_other_laws_come_back(name, truth):
  columns = {"width": np.geomspace(32, 2048, 9)}
  law = laws.make(name, columns, ("width",))
  found = fit(law, data_of(columns, law.formula.value(np.array(truth), columns)), 1e-3)
  np.testing.assert_allclose(found.parameters, truth, rtol=1e-6)


def test_least_squares_are_those_of_scipy():
  columns = {"width": np.repeat(np.geomspace(64, 1024, 5), 3)}
  law = laws.make("power_offset", columns, ("width",))
  data = data_of(columns, noisy(columns, law, [0.5, 0.8, 3.0], 0.05))
  found = fit(law, data, np.inf)
  theirs = optimize.least_squares(lambda p: np.log(p[0] * columns["width"] ** p[1] + p[2])
                                  - data.log_y, [0.5, 0.8, 3.0], xtol=1e-15, ftol=1e-15)
  np.testing.assert_allclose(found.parameters, theirs.x, rtol=1e-5)
  assert found.loss <= theirs.cost * (1 + 1e-12)


def test_a_small_delta_reaches_the_least_absolute_deviations():
  """A linear program knows them exactly, for a law that is straight in logarithms."""
  columns = {"width": np.repeat(np.geomspace(64, 1024, 5), 4)}
  law = laws.make("power", columns, ("width",))
  data = data_of(columns, noisy(columns, law, [2.0, 0.5], 0.1, seed=3))
  delta = 1e-7
  found = fit(law, data, delta)
  n = data.log_y.size
  design = np.stack([np.ones(n), np.log(columns["width"])], 1)
  program = optimize.linprog(
      np.r_[0, 0, np.ones(2 * n)], A_eq=np.hstack([design, np.eye(n), -np.eye(n)]),
      b_eq=data.log_y, bounds=[(None, None)] * 2 + [(0, None)] * 2 * n)
  assert found.loss / delta == pytest.approx(program.fun, rel=1e-5)


def test_the_default_delta_is_at_a_minimum():
  columns = {"width": np.repeat(np.geomspace(64, 1024, 5), 3)}
  law = laws.make("power_offset", columns, ("width",))
  found = fit(law, data_of(columns, noisy(columns, law, [0.5, 0.8, 3.0], 0.05, seed=5)), 1e-3)
  assert found.ends.converged[found.ends.loss.argmin()]
  near = found.parameters * (1 + 1e-4 * np.random.default_rng(0).standard_normal((200, 3)))
  losses = loss_of(residuals_of(law.formula, near, found.data), 1e-3, found.data.weights)
  assert losses.min() >= found.loss


def test_a_batch_is_its_fits_one_by_one():
  columns = {"width": np.repeat(np.geomspace(64, 1024, 5), 3)}
  law = laws.make("power_offset", columns, ("width",))
  y = np.stack([noisy(columns, law, [0.5, 0.8, 3.0], 0.05, seed) for seed in range(4)])
  start = np.tile([0.5, 0.8, 3.0], (4, 1))
  together = solve(law.formula, law.is_log, start, Data(
      columns, np.log(y), np.ones(15), np.ones(15)), 1e-3)
  for i in range(4):
    alone = solve(law.formula, law.is_log, start[:1], data_of(columns, y[i]), 1e-3)
    np.testing.assert_allclose(together.parameters[i], alone.parameters[0], rtol=1e-7)


def test_weights_count_points():
  columns = {"width": np.array([64.0, 128, 256, 512])}
  law = laws.make("power", columns, ("width",))
  y = noisy(columns, law, [2.0, 0.5], 0.1)
  twice = np.array([1, 2, 1, 0])
  weighted = fit(law, Data(columns, np.log(y), np.ones(4), twice.astype(float)), np.inf)
  repeated = fit(law, data_of({"width": np.repeat(columns["width"], twice)},
                              np.repeat(y, twice)), np.inf)
  np.testing.assert_allclose(weighted.parameters, repeated.parameters, rtol=1e-7)


def test_alpha_and_beta_may_be_swapped_where_tokens_follow_parameters():
  n = np.geomspace(1e7, 1e10, 12)
  columns = {"parameters": n, "tokens": 20 * n}
  y = 1.69 + 406.4 / n ** 0.34 + 410.7 / (20 * n) ** 0.28
  found = analyse(table_of(columns, y * np.exp(0.002 * np.sin(np.arange(12)))),
                  Options("chinchilla", resamples=99, simulated=0))
  for name in ("alpha", "beta", "A", "B"):
    assert found["not_identified"][name] == (
        "alpha and beta may be swapped with the same loss: parameters and tokens grow together "
        "at the points")
    one = found["parameters"][name]
    assert one["low"] is None and one["high"] is None and one["standard_error"] is None


def test_too_few_sizes_are_named():
  columns = {"width": np.repeat([64.0, 256.0], 4)}
  law = laws.make("power_offset", columns, ("width",))
  y = noisy(columns, law, [0.5, 0.8, 3.0], 0.01)
  found = analyse(table_of(columns, y), Options("power_offset", ("width",), resamples=99,
                                                simulated=0))
  assert set(found["not_identified"]) == {"a", "b", "c"}
  assert "too few different sizes" in found["not_identified"]["b"]


@pytest.mark.parametrize("options, message", (
    (Options("power_offset", ("width",)), "3 parameters need at least 4 points, here are 3"),
    (Options("power", ("width",), hold_out=3), "of 3 sizes, at least one must stay"),
    (Options("power", ("width",), size="widht"), "no such variable; did you mean width"),
    (Options("power", ("width",), forecasts=({"width": -1.0},)), "must be positive"),
    (Options("power", ("width",), forecasts=({"depth": 1.0},)), "no variable of the law"),
    (Options("power", ("width",), drop_highest=3), "drop_highest=3: there are 3 points"),
    (Options("a * seed^b"), "seed is 0; a law's variables must be positive"),
    (Options("power", ("width",), compare=("powers",)), "did you mean power"),
))
def test_mistakes_are_one_line(options, message):
  table = table_of({"width": np.array([64.0, 128, 256]), "seed": np.array([0.0, 1, 2])},
                   np.array([1.0, 2.1, 4.0]))
  with pytest.raises(UserError, match=message):
    analyse(table, options)
