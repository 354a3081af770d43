"""The model that another folder holds, to go on with its parameters.

  python -m experiments.load --model=PATH --out=DIR
  python -m experiments.train --config=experiments/configs/loaded.py:DIR --workdir=RUN

goes on with it on the standard library of Python, or on any --config.data.corpus. DIR may also be
a run directory. Model, vocabulary and tokenizer are those of DIR, which train.init_from names;
everything else is the default, with a tenth of its learning rate. Set train.sequence_length for
models with rotary positions: the longest they were made for may be long.
"""

from pathlib import Path

from of_jax import run_directory
from of_jax.config import Config, DataConfig, OptimConfig, TrainConfig, from_dict
from of_jax.errors import UserError


def get_config(directory: str) -> Config:
  folder = Path(directory).expanduser()
  if not (folder / run_directory.CHECKPOINTS).is_dir():
    raise UserError(f"--config=experiments/configs/loaded.py:{directory}: no folder of parameters; "
                    "experiments.load --out writes one")
  theirs = from_dict(run_directory.read_json(folder / run_directory.CONFIG))
  tokenizer = folder / run_directory.TOKENIZER
  return Config(
      model=theirs.model,
      optim=OptimConfig(learning_rate=OptimConfig.learning_rate / 10),
      train=TrainConfig(sequence_length=theirs.train.sequence_length, init_from=str(folder)),
      data=DataConfig(vocab_size=theirs.data.vocab_size,
                      tokenizer=str(tokenizer) if tokenizer.exists() else ""))
