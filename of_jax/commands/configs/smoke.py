"""Pre-Norm transformer in which outlier features form within minutes on two CPU cores.

  python -m experiments.train --config=experiments/configs/smoke.py --workdir=runs/smoke

About a minute and a half on two cores, the tokenizer apart.
"""

from of_jax.config import Config, presets


def get_config() -> Config:
  """Returns the smoke setting, unresolved."""
  return presets.smoke()
