"""The rank correlation behind the study int8, against numbers worked out by hand."""

import numpy as np
import pytest

from of_jax.analysis.claims_quantisation import bootstrap_interval, ranks, spearman


def test_rank_correlation() -> None:
  assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
  # 1 - 6 sum d^2 / (n (n^2 - 1)), d = (0, 1, -1, 0).
  assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 9, 4, 16])) == pytest.approx(0.8)
  assert np.isnan(spearman(np.ones(3), np.arange(3.0)))
  a = np.arange(12.0)
  assert bootstrap_interval(a, a ** 3, 200) == pytest.approx((1, 1))
  low, high = bootstrap_interval(a, np.random.default_rng(1).normal(size=12), 200)
  assert low < 0 < high
