"""Model of another folder or file, to go on with its parameters.

  python -m experiments.train --config=experiments/configs/loaded.py:PATH --workdir=RUN

goes on with it on the standard library of Python, or on any --config.data.corpus. PATH is what
experiments.load reads or has left with --out, or a run directory. Model, vocabulary and tokenizer
are those of PATH, which train.init_from names; everything else is the default, with a tenth of its
learning rate. Set train.sequence_length for models with rotary positions: the longest they were
made for may be long. Any train --config.train.init_from=PATH starts from it in the same way. Of a
folder with two sets of weights, PATH@single is model.safetensors and PATH@sharded the index's.
"""


from of_jax import interop
from of_jax.config import Config, DataConfig, OptimConfig, TrainConfig, from_dict, own_code
from of_jax.config.paths import expanded
from of_jax.errors import UserError
from of_jax.interop.weight_sets import split_choice
from of_jax.storage import run_directory


def get_config(named: str) -> Config:
  """Returns the config of a run that goes on with the model at the path `named`, unresolved.

  Raises:
    UserError: no model there, or one that this project cannot express.
  """
  name, weights = split_choice(named)
  path = expanded(name)
  if (path / run_directory.CHECKPOINTS).is_dir():
    theirs = own_code.of_run(from_dict(run_directory.read_json(path / run_directory.CONFIG)), path)
    own = path / run_directory.TOKENIZER
    tokenizer = own if own.exists() else None
  else:
    try:
      source = interop.open_source(path, weights)
      theirs, tokenizer = source.config(), source.tokenizer_file(DataConfig.cache_dir)
    except UserError as error:
      raise UserError(f"--config=experiments/configs/loaded.py:{named}: {error}") from None
  special = {} if tokenizer is None else {
      name: getattr(theirs.data, name) for name in ("end_token_id", "begin_token_id")}
  return Config(
      model=theirs.model,
      optim=OptimConfig(learning_rate=OptimConfig.learning_rate / 10),
      train=TrainConfig(sequence_length=theirs.train.sequence_length,
                        init_from=f"{path}@{weights}" if weights else str(path)),
      data=DataConfig(vocab_size=theirs.data.vocab_size, tokenizer=str(tokenizer or ""), **special))
