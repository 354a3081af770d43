"""Metrics of a user's own, as a file."""

from pathlib import Path

import pytest

OWN = '''
import jax.numpy as jnp

from of_jax.telemetry import Family, group


def above_one(x_TxD):
  "Share of entries above 1 in size."
  return jnp.mean(jnp.abs(x_TxD) > 1)


class Spread(Family):
  metrics = {"spread": ("max X - min X", "activation", "0 and above", "this test")}

  def statistics(self, a):
    return {"max_x": a.largest(a.x_BxTxD), "max_minus_x": a.largest(-a.x_BxTxD)}

  def finish(self, s, no_first):
    return {"spread": group(s, "max_x", no_first) + group(s, "max_minus_x", no_first)}
'''


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
  path = tmp_path / "own.py"
  path.write_text(OWN)
  return path
