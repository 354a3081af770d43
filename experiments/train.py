"""Trains one run, or resumes it.

  python -m experiments.train --config=experiments/configs/smoke.py --workdir=runs/smoke

Any field is set as in --config.optim.learning_rate=3e-3. Started again, the same command resumes
after the last checkpoint and ends in the same bits; a finished run is left as it is.
"""

from absl import flags

from experiments import cli
from of_jax.errors import UserError

_CONFIG = flags.DEFINE_string("config", None, "config file, or FILE:ARGUMENT")
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory: made, or resumed")
_INIT_FROM = flags.DEFINE_string(
    "init_from", None, "run directory, or DIR@STEP, whose parameters to start from; "
    "the same as --config.train.init_from")


def main() -> None:
  if _CONFIG.value is None:
    raise UserError("--config is missing, as in --config=experiments/configs/smoke.py")
  if _WORKDIR.value is None:
    raise UserError("--workdir is missing, as in --workdir=runs/smoke")
  extra = [("train.init_from", _INIT_FROM.value)] if _INIT_FROM.value else []
  config = cli.load_config(_CONFIG.value, extra)
  # jax comes with the trainer, so it is imported only once the command line is known to be good.
  from of_jax.train import train
  train(config, _WORKDIR.value)


if __name__ == "__main__":
  cli.run(main)
