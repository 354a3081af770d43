"""Baselines: published ways to fewer outlier features, which a new one has to beat.

  python -m experiments.train --config=experiments/configs/baselines.py:NAME --workdir=DIR

NAME is tweo (a loss term), osp (Muon, SSNorm, embedding projections) or opt_BLOCK_SETTING, BLOCK
pre, gated or op, SETTING default, no_dropout, large_rate, large_eps or soap, each with what the
ones before it change. opt_gated_default is Bondarenko et al.'s gated attention. All are for
accelerators; model.width=64, model.depth=2 and a small batch try one on a laptop.
"""

from of_jax.config import Config, baselines
from of_jax.errors import UserError


def get_config(name: str) -> Config:
  """Returns the baseline `name`, unresolved.

  Raises:
    UserError: no such baseline.
  """
  try:
    return baselines.baseline(name)
  except UserError as error:
    raise UserError(f"--config=experiments/configs/baselines.py:{error}") from None
