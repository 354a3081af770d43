"""Residual MLP on images.

  python -m experiments.train --config=experiments/configs/mlp_images.py:SCALE --workdir=DIR

SCALE is smoke (handwritten digits from PyPI, a minute on two cores), small (Fashion-MNIST, for
one accelerator) or paper (CIFAR-10 through TFDS, the outlier-feature paper's setup with Adam).
"""

from of_jax.config import Config, presets
from of_jax.errors import UserError


def get_config(scale: str) -> Config:
  """Returns the residual MLP at `scale`, unresolved.

  Raises:
    UserError: no such scale.
  """
  if scale not in presets.MLP_SCALES:
    raise UserError(f"--config=experiments/configs/mlp_images.py:{scale}: no such scale; "
                    f"there are {', '.join(presets.MLP_SCALES)}")
  return presets.residual_mlp(scale)
