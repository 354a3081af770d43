"""Intervals: Student's where theory has them, and how often they hold by simulation."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from of_jax.scaling import holdout, intervals
from of_jax.scaling import law as laws
from of_jax.scaling import noise as noises
from of_jax.scaling import resample, simulate
from of_jax.scaling.solve import Data
from of_jax.scaling.starts import fit
from tests.scaling.test_fit import data_of, noisy

COLUMNS = {"width": np.repeat([64.0, 128, 256, 512], 3)}
LAW = laws.make("power", COLUMNS, ("width",))
NEXT = {"width": np.array([1024.0])}


@pytest.fixture(scope="module")
def straight():
  """A power law by least squares, its noise, resamples, and what linear regression says of it."""
  made = fit(LAW, data_of(COLUMNS, noisy(COLUMNS, LAW, [2.0, 0.5], 0.1)), np.inf)
  noise = noises.of_design(COLUMNS, "width", "constant", 2)
  drawn = resample.resample(made, noise, "normal", 3000, np.random.default_rng(0), [NEXT],
                            [np.log(1024)])
  return made, noise, drawn


def with_limit(drawn, limit):
  return dataclasses.replace(drawn, ratios=np.full_like(drawn.ratios, limit),
                             new_ratios=np.full_like(drawn.new_ratios, limit))


def test_at_students_limit_they_are_those_of_linear_regression(straight):
  made, noise, drawn = straight
  x, t = np.log(COLUMNS["width"]), stats.t.ppf(0.95, 10)
  line = stats.linregress(x, made.data.log_y)
  at_t = with_limit(drawn, t ** 2)
  a, b = intervals.of_parameters(made, at_t, 0.9, np.array([0, 1]))
  assert (b.low, b.high) == pytest.approx((line.slope - t * line.stderr,
                                           line.slope + t * line.stderr), rel=1e-6)
  assert (a.low, a.high) == pytest.approx(tuple(np.exp(
      line.intercept + t * line.intercept_stderr * np.array([-1, 1]))), rel=1e-6)
  error = made.scale * np.sqrt(1 + 1 / 12 + (np.log(1024) - x.mean()) ** 2
                               / ((x - x.mean()) ** 2).sum())
  middle = line.intercept + line.slope * np.log(1024)
  new, = intervals.of_new_runs(made, 0.0, noise, at_t, 0.9, [NEXT], [np.log(1024)])
  assert (new.low, new.high) == pytest.approx(
      (np.exp(middle - t * error), np.exp(middle + t * error)), rel=1e-6)


def test_resamples_find_students_limit(straight):
  _, _, drawn = straight
  t = stats.t.ppf(0.95, 10)
  for ratios in (*drawn.ratios.T, drawn.new_ratios[:, 0]):
    assert np.sqrt(intervals.quantile(ratios, 0.9)) == pytest.approx(t, rel=0.05)


def test_students_and_percentiles_beside_it(straight):
  made, _, drawn = straight
  line = stats.linregress(np.log(COLUMNS["width"]), made.data.log_y)
  others = intervals.others(made, drawn, 0.9, resample.jackknife([made])[0])
  t = stats.t.ppf(0.95, 10)
  assert others["student"][1].low == pytest.approx(line.slope - t * line.stderr, rel=1e-9)
  assert others["studentised"][1].low == pytest.approx(line.slope - t * line.stderr, rel=0.02)
  slopes = drawn.parameters[:, 1]
  assert others["percentile"][1].high == pytest.approx(np.quantile(slopes, 0.95))
  # Normal noise about a straight line has neither bias nor skew to correct.
  assert others["bca"][1].high == pytest.approx(others["percentile"][1].high, rel=0.02)


def test_the_same_seed_gives_the_same_numbers(straight):
  made, noise, _ = straight
  draws = [resample.resample(made, noise, kind, 50, np.random.default_rng(4), [NEXT], [7.0])
           for kind in ("residuals", "residuals", "cases")]
  np.testing.assert_array_equal(draws[0].parameters, draws[1].parameters)
  assert not np.array_equal(draws[0].parameters, draws[2].parameters)


def test_noise_that_grows_is_found_and_widens_forecasts_of_large_sizes():
  size = COLUMNS["width"]
  rng = np.random.default_rng(1)
  log_y = 0.02 * (size / 64) ** 1.0 * rng.standard_normal((400, 12))
  noise = noises.of_design(COLUMNS, "width", "growing", 2)
  growth, p = noise.growth(log_y)
  assert np.median(growth) == pytest.approx(1.0, abs=0.1) and (p < 0.1).mean() > 0.8
  _, p = noise.growth(0.02 * rng.standard_normal((2000, 12)))
  assert (p < 0.1).mean() == pytest.approx(0.1, abs=0.03)
  spread = noise.relative(np.array([1.0]), np.log([64.0, 128.0]))[0]
  assert spread[1] / spread[0] == pytest.approx(2)
  assert np.exp(np.log(noise.relative(np.array([1.0]))).mean()) == pytest.approx(1)


def test_leverages_are_the_hat_matrixs(straight):
  made, _, _ = straight
  x = np.stack([np.ones(12), np.log(COLUMNS["width"])], 1)
  np.testing.assert_allclose(resample.leverages(made),
                             np.diag(x @ np.linalg.inv(x.T @ x) @ x.T), rtol=1e-9)


def test_held_out_errors_tell_laws_apart():
  columns = {"width": np.repeat(np.geomspace(64, 2048, 6), 2)}
  bent = laws.make("power_offset", columns, ("width",))
  y = noisy(columns, bent, [0.01, 1.0, 3.0], 0.01)
  data = data_of(columns, y)
  rows = holdout.compare(holdout.rivals(bent, data, ["power", "constant"], "loss"), data,
                         columns["width"], 1e-3)
  assert rows[0]["law"] == "power_offset"
  by_law = {row["law"]: row["rolling"]["rms_log_error_shared"] for row in rows}
  assert by_law["power"] > 2 * by_law["power_offset"] and by_law["constant"] > by_law["power"]
  exact = holdout.errors(bent, data_of(columns, bent.formula.value(
      np.array([0.01, 1.0, 3.0]), columns)), columns["width"], 1e-3)
  assert len(exact.leave_one_size_out) == 6 and len(exact.rolling) == 3
  assert holdout.rms(exact.rolling) < 1e-6 and holdout.rms(exact.leave_one_size_out) < 1e-6


def test_forecasts_hold_in_a_few_ladders():
  """A sample of the study of docs/scaling.md: of 40, nominal 36, at least 32 in 97 % of samples."""
  found = simulate.ladders(simulate.SCENARIOS[2], 40, np.inf)
  assert 32 <= found["profile"] <= 40 and 32 <= found["new_run"] <= 40


@pytest.mark.slow
@pytest.mark.parametrize("scenario", simulate.SCENARIOS, ids=lambda s: s.name)
def test_intervals_hold_as_often_as_they_say(scenario):
  found = simulate.ladders(scenario, 400, 1e-3, seed=1)
  if scenario.mode == "constant" and scenario.growth:
    assert found["new_run"] / 400 < 0.8
  else:
    assert 0.84 <= found["profile"] / 400 <= 0.96 and 0.84 <= found["new_run"] / 400 <= 0.96


def test_data_with_other_noise_weigh_less():
  columns = {"width": np.array([64.0, 128, 256, 512])}
  y = np.array([8.0, 11.0, 16.0, 40.0])
  trusted = Data(columns, np.log(y), np.array([1.0, 1, 1, 100]), np.ones(4))
  found = fit(LAW, trusted, np.inf)
  without = fit(LAW, data_of({"width": columns["width"][:3]}, y[:3]), np.inf)
  np.testing.assert_allclose(found.parameters, without.parameters, rtol=1e-3)
