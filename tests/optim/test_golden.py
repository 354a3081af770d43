"""Muon against its authors' code, part by part; tests/golden/first_order.py made the numbers."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.optim import scale_by_muon
from of_jax.optim.optimizers import muon

pytestmark = pytest.mark.xdist_group("golden")

GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPT = runpy.run_path(str(GOLDEN / "first_order.py"))


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
  with np.load(GOLDEN / "first_order.npz") as file:
    return dict(file)


def test_muon(numbers: dict[str, np.ndarray]) -> None:
  """Momentum to 1e-6 before the orthogonalisation, 1e-5 after it, and both together."""
  params = {name: w for name, w in SCRIPT["parameters"]().items() if w.ndim > 1}
  optimizer, beta = scale_by_muon(SCRIPT["MUON_MOMENTUM"]), SCRIPT["MUON_MOMENTUM"]
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for step in range(1, 11):
    grads = {name: SCRIPT["gradient"](name, w, step) for name, w in params.items()}
    before, _ = muon.accumulate(grads, state.trace, beta, nesterov=True)
    updates, state = update(grads, state)
    if step not in (1, 2, 10):
      continue
    for name in params:
      enters, leaves = (numbers[f"muon/{name}/{step}/{end}"] for end in ("before", "after"))
      assert np.linalg.norm(before[name] - enters) < 1e-6 * np.linalg.norm(enters), (name, step)
      scale = max(1, enters.shape[1] / enters.shape[0]) ** 0.5
      alone = scale * muon.orthogonalize(jnp.asarray(enters)[None])[0]
      for found in (alone, updates[name]):
        assert np.linalg.norm(found - leaves) < 1e-5 * np.linalg.norm(leaves), (name, step)
