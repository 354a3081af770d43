"""Outlier dimensions and what they do, against loops in plain NumPy and numbers made by hand."""

import math

import numpy as np
import pytest

from of_jax.analysis import outlier_dimensions as outliers
from of_jax.analysis import over_training

WIDTH, VOCAB, CONTEXTS = 200, 40, 60


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Representations in which dimension 7 is ten and 150 is twenty times as large as the others."""
  rng = np.random.default_rng(0)
  h = rng.standard_normal((CONTEXTS, WIDTH)).astype(np.float32)
  h[:, 7] = 10 + 0.1 * h[:, 7]
  h[:, 150] = -20 + 0.1 * h[:, 150]
  table = rng.standard_normal((WIDTH, VOCAB)).astype(np.float32) / 4
  table[33] *= 30
  return (h, table, rng.integers(0, VOCAB, CONTEXTS), rng.integers(0, 50, VOCAB))


def test_the_papers_rule(made) -> None:
  h, table, _, _ = made
  magnitudes = np.abs(h.astype(np.float64))
  threshold = np.sort(magnitudes, axis=None)
  # The 0.99 quantile by hand: between two order statistics.
  place = 0.99 * (threshold.size - 1)
  low = int(place)
  threshold = threshold[low] + (place - low) * (threshold[low + 1] - threshold[low])
  expected = [j for j in range(WIDTH) if np.median(magnitudes[:, j]) > threshold]
  assert sorted(expected) == [7, 150]
  assert outliers.outlier_dimensions(h).tolist() == [150, 7]
  assert outliers.outlier_dimensions(table.T).tolist() == [33]
  assert outliers.outlier_dimensions(h[:, 10:140]).size == 0
  # Not a matter of the mean: huge in fewer than half of the contexts is no outlier.
  rare = h.copy()
  rare[: CONTEXTS // 2 - 1, 60] = 1e6
  assert 60 not in outliers.outlier_dimensions(rare)


def by_hand(h, table, targets, kept):
  """Surprisal, entropy, KL and overlap of each context, token by token."""
  rows = []
  for n in range(len(h)):
    def probabilities(dimensions):
      logits = [sum(float(h[n, j]) * float(table[j, v]) for j in dimensions) for v in range(VOCAB)]
      top = max(logits)
      weights = [math.exp(z - top) for z in logits]
      return [w / sum(weights) for w in weights]

    p, q = probabilities(range(WIDTH)), probabilities(kept)
    best = [set(sorted(range(VOCAB), key=lambda v: -r[v])[:20]) for r in (p, q)]
    rows.append((-math.log(q[targets[n]]), -sum(x * math.log(x) for x in q if x),
                 sum(a * math.log(a / b) for a, b in zip(p, q) if a),
                 len(best[0] & best[1]) / 20, max(range(VOCAB), key=lambda v: q[v])))
  return list(zip(*rows))


@pytest.mark.parametrize("kept", ([7, 150], [j for j in range(WIDTH) if j not in (7, 150)]))
def test_comparison_equals_loops(made, kept) -> None:
  h, table, targets, counts = made
  h, targets = h[:8], targets[:8]
  got = outliers.compare(h, table, targets, counts, np.array(kept))
  surprisal, entropy, kl, overlap, predicted = by_hand(h, table, targets, kept)
  np.testing.assert_allclose(got.surprisal, surprisal, rtol=1e-10)
  np.testing.assert_allclose(got.entropy, entropy, rtol=1e-8, atol=1e-12)
  np.testing.assert_allclose(got.kl_divergence, kl, rtol=1e-8, atol=1e-12)
  np.testing.assert_array_equal(got.top20_overlap, overlap)
  np.testing.assert_array_equal(got.predicted, predicted)


def test_chunks_change_nothing(made, monkeypatch) -> None:
  whole = outliers.compare(*made).summary()
  monkeypatch.setattr(outliers, "_LOGITS_AT_ONCE", 7 * VOCAB)
  assert outliers.compare(*made).summary() == whole
  assert whole["kl_divergence"] == 0 and whole["top20_overlap"] == 1


def test_frequencies_by_hand() -> None:
  """Tokens 0, 1 and 2 make 1/2, 1/4 and 1/4 of the corpus; 3 is predicted and not in it."""
  got = outliers.Predictions(
      np.zeros(8), np.zeros(8), np.zeros(8), np.zeros(8),
      predicted=np.array([0, 0, 0, 0, 0, 1, 2, 3]), targets=np.array([0, 0, 1, 1, 0, 1, 1, 3]),
      corpus_counts=np.array([10, 5, 5, 0])).summary()
  # x = (.5, .25, .25), y = (5/8, 1/8, 1/8): the line rises by 1/2 over 1/4.
  assert got["frequency_slope"] == pytest.approx(2)
  assert got["frequency_spearman"] == pytest.approx(1)
  assert got["distinct_predictions"] == 4 and got["accuracy"] == 5 / 8
  assert got["mean_corpus_share_of_predicted"] == pytest.approx((5 * .5 + .25 + .25) / 8)
  # Ranks by hand, ties at their mean: x 1, 2.5, 2.5, 4 and y 2, 1, 3.5, 3.5.
  x, y = np.array([1., 2, 2, 9]), np.array([5., 4, 7, 7])
  ranks = np.array([1, 2.5, 2.5, 4]), np.array([2, 1, 3.5, 3.5])
  a, b = (r - r.mean() for r in ranks)
  assert outliers.spearman(x, y) == pytest.approx((a * b).sum() / np.sqrt((a * a).sum()
                                                                         * (b * b).sum()))
  assert outliers.spearman(np.ones(3), np.arange(3.)) is None
  assert outliers.slope(np.ones(3), np.arange(3.)) is None


def test_ablations(made) -> None:
  h, table, targets, counts = made
  found = outliers.ablations(h, table, targets, counts)
  assert found["outlier_dimensions"] == [150, 7]
  assert found["unembedding_outlier_dimensions"] == [33]
  without = [j for j in range(WIDTH) if j not in (7, 150)]
  assert found["without_outlier_dimensions"] == outliers.compare(
      h, table, targets, counts, np.array(without)).summary()
  # The two dimensions are most of every logit: alone they predict one token, others change little.
  assert found["only_outlier_dimensions"]["distinct_predictions"] == 1
  assert found["without_random"]["kl_divergence"] < 0.1 * found["without_outlier_dimensions"][
      "kl_divergence"]
  low, high = found["without_random_range"]
  assert low["surprisal"] <= found["without_random"]["surprisal"] <= high["surprisal"]
  assert low["surprisal"] < high["surprisal"], "five different draws"
  assert outliers.ablations(h, table, targets, counts) == found
  none = outliers.ablations(h[:, 10:140], table[10:140], targets, counts)
  assert none["outlier_dimensions"] == [] and none["only_random"] is None


def test_boost_by_hand() -> None:
  values = np.array([1., -2, 3, -8, 5])
  found = outliers.boost(np.array([3, 0]), {"gain": values})
  assert found == {"gain": {"ratios": [8 / 3, 1 / 3], "ranks": [0, 4]}}


def test_token_counts(monkeypatch) -> None:
  tokens = np.random.default_rng(0).integers(0, 9, 1000).astype(np.uint16)
  assert over_training.token_counts(tokens, 10).tolist() == [
      int((tokens == v).sum()) for v in range(10)]
