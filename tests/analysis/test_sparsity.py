"""Activity of hidden units and singular spectra, against plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.analysis import sparsity, spectra

LAYERS, BATCH, TIME, UNITS = 2, 3, 4, 25


@pytest.fixture
def hidden(monkeypatch) -> list[tuple[np.ndarray, np.ndarray]]:
  """Two batches of hidden units [layers, batch, time, units], the second with an empty row, in
  place of a model's."""
  rng = np.random.default_rng(0)
  made = []
  for weights in (np.ones((BATCH, TIME)), np.repeat([[1.], [1.], [0.]], TIME, 1)):
    x = np.maximum(rng.standard_normal((LAYERS, BATCH, TIME, UNITS)) - 1, 0)
    x[1, :, :, :5] = 0
    x[:, weights[:, 0] == 0] = 7  # Padding is active, and must not count.
    made.append((x.astype(np.float32), weights.astype(np.float32)))

  def observed(model, batches, make_observer):
    del model
    for x, weights in batches:
      observe = make_observer(jnp.asarray(weights))
      assert observe("mlp_in", jnp.asarray(x[0]), None) is None
      layers = [observe("mlp_hidden", jnp.asarray(layer), None) for layer in x]
      yield {"weights": weights}, {"mlp_hidden": {
          name: np.stack([layer[name] for layer in layers]) for name in layers[0]}}

  monkeypatch.setattr(sparsity, "observed", observed)
  return made


def test_activity_equals_loops(hidden) -> None:
  got = sparsity.activity(None, hidden, batch_tokens=8)
  sequences = [x[:, row] != 0 for x, weights in hidden for row in range(BATCH) if weights[row, 0]]
  assert len(sequences) == 5
  for layer in range(LAYERS):
    tokens = [np.mean(token) for sequence in sequences for token in sequence[layer]]
    np.testing.assert_allclose(got.token_LxN[layer], tokens)
    np.testing.assert_allclose(got.sequence_LxS[layer],
                               [np.mean(sequence[layer].any(0)) for sequence in sequences])
    # Batches of two sequences; the fifth is a rest.
    batches = [np.mean((sequences[i][layer] | sequences[i + 1][layer]).any(0)) for i in (0, 2)]
    np.testing.assert_allclose(got.batch_LxB[layer], batches)
    every = np.concatenate([sequence[layer] for sequence in sequences])
    np.testing.assert_allclose(got.frequency_LxF[layer], every.mean(0))
    row = got.by_layer()[layer]
    assert row["active_fraction_token"] == pytest.approx(np.mean(tokens))
    assert row["dead_fraction"] == pytest.approx(np.mean(~every.any(0)))
    assert row["token_percentiles"]["75"] == pytest.approx(np.percentile(tokens, 75))
    assert row["unit_frequency_percentiles"]["5"] == pytest.approx(
        np.percentile(every.mean(0), 5))
  assert got.dead_LxF[1, :5].all() and got.by_layer()[1]["dead_fraction"] >= 0.2


def test_too_few_tokens_are_one_batch(hidden) -> None:
  got = sparsity.activity(None, hidden, batch_tokens=10_000)
  np.testing.assert_allclose(got.batch_LxB[:, 0], 1 - got.dead_LxF.mean(1))
  assert got.batch_tokens == 20


def test_turnover_by_hand() -> None:
  dead = [np.array([row], bool) for row in ([1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1])]
  first, second, third = (step[0] for step in sparsity.turnover(dead))
  assert first == {"died": 0, "revived": 0, "stays_dead": 0.25}
  assert second == {"died": 0.25, "revived": 0.5, "stays_dead": 0.5}
  assert third == {"died": 0.25, "revived": 0, "stays_dead": 0.75}


def test_spectrum() -> None:
  rng = np.random.default_rng(0)
  left, _ = np.linalg.qr(rng.standard_normal((6, 4)))
  right, _ = np.linalg.qr(rng.standard_normal((4, 4)))
  found = spectra.spectrum(left @ np.diag([3., 2, 1, 0]) @ right)
  assert found["top_singular_value"] == pytest.approx(3)
  assert found["frobenius_norm"] == pytest.approx(14 ** 0.5)
  assert found["stable_rank"] == pytest.approx(14 / 9)
  assert np.isnan(spectra.spectrum(np.zeros((2, 2)))["stable_rank"])
