"""A checkpoint as a model. Enters: a run directory and a step. Leaves: parameters whose digest was
checked, on one device whatever mesh wrote them, and the batches to measure them on.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from of_jax import config as config_lib
from of_jax.analysis import evaluation
from of_jax.analysis.evaluation import Batch, Replayed
from of_jax.analysis.runs import own_metrics, read_config
from of_jax.config import Config
from of_jax.data import tokenizer as tokenizer_lib
from of_jax.data.corpora import prepare
from of_jax.data.folder import Corpus
from of_jax.data.images import Images
from of_jax.data.loader import Shuffled, make_batches
from of_jax.errors import UserError
from of_jax.models.functional import Parameters
from of_jax.models.probe import uses_dropout
from of_jax.storage import checkpoint, remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.storage.digest import as_text

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Restored:
  """One checkpoint.

  Attributes:
    path: the run directory.
    config: of the run, resolved.
    params: on the first device.
    step: how many steps they were trained for.
    digest: one 32-bit sum an array, in hexadecimal, see of_jax.storage.digest.
    is_verified: whether the checkpoint has a digest, which then agreed; old ones have none.
  """

  path: Path
  config: Config
  params: Parameters
  step: int
  digest: str
  is_verified: bool

  @property
  def tokenizer(self) -> Path | None:
    """The run's tokenizer.json; None where its corpus came as token ids, or as images."""
    path = self.path / run_directory.TOKENIZER
    return path if path.is_file() else None

  def logits(self, inputs: npt.NDArray[np.generic]) -> jax.Array:
    """float32 [batch, time, vocabulary] of tokens [batch, time], or of images."""
    return evaluation.logits(self, inputs)

  def measure(self, batches: Iterable[Batch | Replayed], sites: Sequence[str] = (),
              metrics: Sequence[str] = (), user_metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Loss and telemetry over all batches together, see of_jax.analysis.evaluation.measure.

    The metrics of the user's own that the run measured are measured again.
    """
    return evaluation.measure(self, batches, sites, metrics,
                              (*self.config.telemetry.user_metrics, *user_metrics))

  def batches(self, split: str = "validation", count: int | None = None,
              log: Log = lambda line: None) -> list[Batch]:
    """Batches of the run's own corpus, see `corpus_batches`."""
    return corpus_batches(self.config, prepare(self.config.data, log), split, count)

  def training_batch(self, log: Log = lambda line: None) -> list[Replayed]:
    """Batches that the training step after this checkpoint reads, a micro-batch each.

    `measure` of it is what metrics.jsonl logs at `step` + 1: a step's numbers are those of the
    parameters that it began with.
    """
    train = self.config.train
    batches = make_batches(prepare(self.config.data, log), self.config.data, train)
    batch, parts = batches.train_batch(self.step), train.grad_accumulation
    # As the train step has it: row r is in micro-batch r % parts, each with its own key.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(train.seed), 1), self.step)
    keys = jax.random.split(key, parts) if parts > 1 else [key]
    drops = uses_dropout(self.config.model)
    return [Replayed({name: rows[part::parts] for name, rows in batch.items()},
                     keys[part] if drops else None) for part in range(parts)]


def restore(run: str | Path, step: int | None = None) -> Restored:
  """The checkpoint of `run`, a run directory or its URL, at `step`, by default its last.

  Raises:
    UserError: no run directory, no such checkpoint, or one that is not what it says it is.
  """
  path = remote.reading(run)
  name = remote.name_of(path)
  config = config_lib.resolve(_with_own_metrics(path, read_config(path)))
  available = checkpoint_steps(path)
  step = checkpoint.check_step(name, available[-1] if step is None else step, available)
  with Checkpoints(path, reading=True) as checkpoints:
    loaded = checkpoints.load_host(step, ("params", "digest"))
  checkpoint.check_same_shapes(
      str(path), evaluation.network_of(config).shapes, loaded["params"],
      f"parameter {{name}} of step {step} is {{saved}}, and its config makes it {{ours}}")
  params = jax.device_put(loaded["params"], jax.devices()[0])
  computed = checkpoint.check_digest(name, params, step, loaded)
  return Restored(path, config, params, step, as_text(computed), "digest" in loaded)


def checkpoint_steps(run: str | Path) -> list[int]:
  """The steps of a run's checkpoints, ascending; at least one.

  Raises:
    UserError: not a run directory, or one without a checkpoint.
  """
  path = remote.reading(run)
  read_config(path)
  if not remote.checkpoints(path).is_dir():
    raise UserError(f"{remote.name_of(path)}: has no checkpoints")
  with Checkpoints(path, reading=True) as checkpoints:
    steps = checkpoints.steps
  if not steps:
    raise UserError(f"{remote.name_of(path)}: has no checkpoints")
  return steps


def corpus_batches(config: Config, corpus: Corpus | Images, split: str = "validation",
                   count: int | None = None) -> list[Batch]:
  """Batches of `train.batch_size` rows.

  Args:
    config: resolved; its `train` and `data` sections say how batches are made.
    corpus: of tokens that the model knows.
    split: `validation`, the fixed evaluation set, or `train`, the first batches of training.
    count: how many batches; default the whole evaluation set, or as many of training.
  """
  batches: Shuffled = make_batches(corpus, config.data, config.train)
  evaluated = batches.eval_batches()
  if split == "validation":
    return list(evaluated[:count])
  return [batches.train_batch(i) for i in range(len(evaluated) if count is None else count)]


def token_batches(config: Config, tokens: npt.NDArray[np.integer], where: str,
                  count: int | None = None, end_token: int | None = None,
                  begin_token: int | None = None) -> list[Batch]:
  """Batches of given tokens.

  Args:
    tokens: [tokens], cut into windows as the loader does, each beginning with the last token of
      the one before; or [windows, length + 1], of which each row is read as it is.
    where: the flag and its value, for messages.
    count: how many batches, of windows evenly spread; default all windows.
    end_token, begin_token: where the config needs them.

  Raises:
    UserError: not tokens of this model, or too few.
  """
  length, size = config.train.sequence_length, config.train.batch_size
  if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer):
    raise UserError(f"{where}: holds {tokens.dtype.name} of shape {tokens.shape}; tokens are whole "
                    "numbers, [tokens] or [windows, length + 1]")
  if tokens.size and not 0 <= tokens.min() <= tokens.max() < config.data.vocab_size:
    worst = tokens.min() if tokens.min() < 0 else tokens.max()
    raise UserError(f"{where}: token {worst} is not in [0, {config.data.vocab_size}), the model's "
                    "vocabulary")
  if tokens.ndim == 2:
    if not 2 <= tokens.shape[1] <= length + 1 or not len(tokens):
      raise UserError(f"{where}: windows of {tokens.shape[1]} tokens; they have 2 to {length + 1}, "
                      "the model's sequence_length and the token behind it")
    return _rows(config, tokens, count, end_token)
  windows = max(0, (len(tokens) - 1) // length)
  if not windows:
    raise UserError(f"{where}: {len(tokens)} tokens; a window takes {length + 1}, the model's "
                    "sequence_length and the token behind it")
  wanted = windows if count is None else min(windows, count * size)
  corpus = Corpus(tokens, tokens, config.data.vocab_size, end_token, begin_token, "", "", None,
                  where)
  data = dataclasses.replace(config.data, eval_sequences=wanted)
  # Training wants a batch at least; nothing of it is read.
  train = dataclasses.replace(config.train, batch_size=min(size, windows))
  return list(make_batches(corpus, data, train).eval_batches())


def _rows(config: Config, windows: npt.NDArray[np.integer], count: int | None,
          end_token: int | None) -> list[Batch]:
  size = min(config.train.batch_size, len(windows))
  batches: list[Batch] = []
  for start in range(0, len(windows), size)[:count]:
    rows = windows[start:start + size].astype(np.int32)
    padded = np.zeros((size, rows.shape[1]), np.int32)
    padded[:len(rows)] = rows
    weights = np.zeros((size, rows.shape[1] - 1), np.float32)
    weights[:len(rows)] = 1
    batch = {"inputs": padded[:, :-1], "targets": padded[:, 1:], "weights": weights}
    if not config.data.cross_documents and end_token is not None:
      ended = np.cumsum(padded[:, :-2] == end_token, axis=1)
      batch["documents"] = np.pad(ended, ((0, 0), (1, 0))).astype(np.int32)
    batches.append(batch)
  return batches


def encode(model_tokenizer: Path | None, text: str, where: str) -> npt.NDArray[np.integer]:
  """The tokens of one text and its end token, as the model's own tokenizer has them.

  Raises:
    UserError: the run has no tokenizer, or it is none.
  """
  if model_tokenizer is None:
    raise UserError(f"{where}: the model came without a tokenizer; give --tokens=FILE.npy")
  encoder = tokenizer_lib.Encoder(model_tokenizer.read_text(encoding="utf-8"),
                                  str(model_tokenizer))
  return np.append(encoder.encode([text])[0], encoder.end_token)


def special_tokens(config: Config, model_tokenizer: Path | None) -> tuple[int | None, int | None]:
  """(end token, begin token): the config's, else the tokenizer's."""
  end, begin = config.data.end_token_id, config.data.begin_token_id
  if model_tokenizer is not None:
    encoder = tokenizer_lib.Encoder(model_tokenizer.read_text(encoding="utf-8"),
                                    str(model_tokenizer))
    end = encoder.end_token if end is None else end
    begin = encoder.begin_token if begin is None else begin
  return end, begin


def _with_own_metrics(path: Path, config: Config) -> Config:
  return dataclasses.replace(config, telemetry=dataclasses.replace(
      config.telemetry, user_metrics=own_metrics(path, config)))
