"""Ladder of model sizes, and the settings of the papers.

  python -m experiments.train --config=experiments/configs/ladder.py:SIZE --workdir=DIR

SIZE is tiny, small, 130m, 320m, 1b, 7b, or released, the setup of the outlier-feature paper's
code, with its other forms released_op, released_tanh, released_qk_norm, released_post and
released_parallel. tiny takes half a minute on two cores; 130m is the paper's default setup, for an
accelerator.
"""

from of_jax.config import Config, presets
from of_jax.errors import UserError


def get_config(size: str) -> Config:
  """Returns the preset `size`, unresolved.

  Raises:
    UserError: no such size.
  """
  if size not in presets.SIZES:
    raise UserError(f"--config=experiments/configs/ladder.py:{size}: no such size; "
                    f"there are {', '.join(presets.SIZES)}")
  return presets.preset(size)
