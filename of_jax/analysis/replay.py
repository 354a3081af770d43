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
from of_jax import user_code
from of_jax.analysis import evaluation
from of_jax.analysis.evaluation import Batch, Replayed
from of_jax.analysis.runs import own_metrics, read_config, without_user_code
from of_jax.config import Config, own_code
from of_jax.data import tokenizer as tokenizer_lib
from of_jax.data.corpora import prepare
from of_jax.data.folder import Corpus
from of_jax.data.images import Images
from of_jax.data.loader import Shuffled, make_batches
from of_jax.data.special_tokens import SpecialTokens
from of_jax.errors import UserError, refusing
from of_jax.models.functional import Parameters
from of_jax.models.probe import uses_dropout
from of_jax.storage import checkpoint, remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.storage.digest import as_text
from of_jax.storage.sources import check_run

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

  @property
  def special(self) -> SpecialTokens:
    """The tokens that begin and end a text: what the run recorded, or else its tokenizer says."""
    data, path = self.config.data, self.path / run_directory.ENVIRONMENT
    saved = run_directory.read_object(path).get("special_tokens") if path.is_file() else {}
    saved = saved if isinstance(saved, dict) else {}
    found = (SpecialTokens(None, None) if self.tokenizer is None else
             tokenizer_lib.read(self.tokenizer, str(self.tokenizer)).special)
    end, begin = (next((one for one in of if one is not None), None) for of in (
        (data.end_token_id, saved.get("end"), found.end),
        (data.begin_token_id, saved.get("begin"), found.begin)))
    for one in (end, begin):
      if one is not None and type(one) is not int:
        raise UserError(f"{path}: special_tokens: {str(one)[:40]} is no id")
    return SpecialTokens(end, begin, data.begin_token).within(data.vocab_size)

  def logits(self, inputs: npt.NDArray[np.generic]) -> jax.Array:
    """float32 [batch, time, vocabulary] of tokens [batch, time], or of images."""
    return evaluation.logits(self, inputs)

  def measure(self, batches: Iterable[Batch | Replayed], sites: Sequence[str] = (),
              metrics: Sequence[str] = (), user_metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Loss and telemetry over all batches together, see of_jax.analysis.evaluation.measure.

    The metrics of the user's own that the run measured are measured again, if `restore` was told
    to run them.
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


def restore(run: str | Path, step: int | None = None, run_user_code: bool = False) -> Restored:
  """The checkpoint of `run`, a run directory or its URL, at `step`, by default its last.

  Args:
    run_user_code: whether Python that the directory brings may be run: the run's own metrics
      (telemetry.user_metrics), without which the config comes else, and what its config names as
      FILE.py:NAME, without which there is no model.

  Raises:
    UserError: no run directory, no such checkpoint, or one that is not what it says it is.
  """
  path = remote.reading(run)
  name = remote.name_of(path)
  config, shapes = config_and_shapes(path, run_user_code)
  available = checkpoint_steps(path)
  step = checkpoint.check_step(name, available[-1] if step is None else step, available)
  with Checkpoints(path, reading=True) as checkpoints:
    loaded = checkpoints.load_host(step, ("params", "digest"))
    check_run(name, checkpoints, path, step, loaded)
  checkpoint.check_same_shapes(
      str(path), shapes, loaded.get("params", {}),
      f"parameter {{name}} of step {step} is {{saved}}, and its config makes it {{ours}}")
  params = jax.device_put(loaded["params"], jax.devices()[0])
  computed = checkpoint.check_digest(name, params, step, loaded)
  return Restored(path, config, params, step, as_text(computed), "digest" in loaded)


def config_and_shapes(path: Path, run_user_code: bool = False) -> tuple[Config, Any]:
  """The resolved config of a run directory, and the shapes of its model's parameters.

  Raises:
    UserError: no run directory, or a config of which no model can be built.
  """
  saved = read_config(path)
  if run_user_code:
    for text in own_code.named(saved).values():
      user_code.trust(text, copies=True)
  with refusing(str(path / run_directory.CONFIG), "is no config that can be built"):
    config = config_lib.resolve(
        _with_own_metrics(path, saved) if run_user_code else without_user_code(saved))
    return config, evaluation.network_of(config).shapes


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
  """Batches of given tokens, all of which are measured.

  Args:
    config: resolved.
    tokens: [tokens], cut into windows of `train.sequence_length` as the loader does, each followed
      by the first token of the next, which it predicts (fewer tokens than that are one window); or
      [windows, T], of which each row is read as it is: T tokens, of which T - 1 are followed by one
      to predict. A token behind `train.sequence_length` is predicted and not read.
    where: the flag and its value, for messages.
    count: how many batches, of windows evenly spread; default all windows. A stream's last tokens,
      too few for a window, are left out.
    end_token: where the config needs it.
    begin_token: what the loader puts in place of a window's last token with `data.begin_token`;
      None where windows are read as they are in any case, see `begin_windows`.

  Raises:
    UserError: not tokens of this model, or too few.
  """
  length, size = config.train.sequence_length, config.train.batch_size
  if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer):
    raise UserError(f"{where}: holds {tokens.dtype.name} of shape {tokens.shape}; tokens are whole "
                    "numbers, [tokens] or [windows, length]")
  if tokens.size and not 0 <= tokens.min() <= tokens.max() < config.data.vocab_size:
    worst = tokens.min() if tokens.min() < 0 else tokens.max()
    raise UserError(f"{where}: token {worst} is not in [0, {config.data.vocab_size}), the model's "
                    "vocabulary")
  if tokens.ndim == 2 or len(tokens) < length:
    return _rows(config, np.atleast_2d(tokens), where, count, end_token)
  # The last window may be whole and have no token behind it: then it predicts one less.
  is_last_cut = len(tokens) % length == 0
  windows = len(tokens) // length
  followed = np.append(tokens, tokens[:1]) if is_last_cut else tokens
  wanted = windows if count is None else min(windows, count * size)
  corpus = Corpus(followed, followed, config.data.vocab_size, end_token, begin_token, "", "", None,
                  where)
  begins = config.data.begin_token and begin_token is not None
  data = dataclasses.replace(config.data, eval_sequences=wanted, begin_token=begins)
  # Training wants a batch at least; nothing of it is read.
  train = dataclasses.replace(config.train, batch_size=min(size, windows))
  batches: list[Batch] = list(make_batches(corpus, data, train).eval_batches())
  if is_last_cut and wanted == windows and not begins:
    batches[-1] = _without_target(batches[-1], (windows - 1) % train.batch_size)
  return batches


def _without_target(batch: Batch, row: int) -> Batch:
  """Measures the last token of a row, which nothing follows, and predicts nothing from it."""
  weights = batch["weights"].copy()
  weights[row, -1] = 0
  return {**batch, "weights": weights, "measured": batch["weights"]}


def _rows(config: Config, windows: npt.NDArray[np.integer], where: str, count: int | None,
          end_token: int | None) -> list[Batch]:
  """Batches of windows that are read as they are."""
  length, size = config.train.sequence_length, min(config.train.batch_size, len(windows))
  if not len(windows):
    raise UserError(f"{where}: holds no windows: it is of shape {windows.shape}")
  if not 2 <= windows.shape[1] <= length + 1:
    raise UserError(f"{where}: windows of {windows.shape[1]} tokens; they have 2 to {length}, what "
                    "the model reads, or one more, which is predicted alone")
  read = min(length, windows.shape[1])
  batches: list[Batch] = []
  for start in range(0, len(windows), size)[:count]:
    rows = windows[start:start + size]
    padded = np.zeros((size, read + 1), np.int32)
    padded[:len(rows), :rows.shape[1]] = rows
    measured = np.zeros((size, read), np.float32)
    measured[:len(rows)] = 1
    batch = {"inputs": padded[:, :-1], "targets": padded[:, 1:], "weights": measured}
    if not config.data.cross_documents and end_token is not None:
      ended = np.cumsum(padded[:, :-2] == end_token, axis=1)
      batch["documents"] = np.pad(ended, ((0, 0), (1, 0))).astype(np.int32)
    if read == windows.shape[1]:
      weights = measured.copy()
      weights[:, -1] = 0
      batch |= {"weights": weights, "measured": measured}
    batches.append(batch)
  return batches


def begin_windows(batches: Sequence[Batch], begin_token: int) -> list[Batch]:
  """Puts the begin token in front of every window; what is predicted stays the same.

  It is read and measured, and the prediction behind it does not count: the loss is that of the
  same tokens with or without it.
  """
  found: list[Batch] = []
  for batch in batches:
    first = np.full_like(batch["inputs"][:, :1], begin_token)
    real = evaluation.measured(batch)[:, :1]
    before = {"inputs": first, "targets": batch["inputs"][:, :1], "weights": np.zeros_like(real),
              "measured": real, "documents": np.zeros_like(first)}
    whole = {**batch, "measured": evaluation.measured(batch)}
    found.append({name: np.concatenate([before[name], rows], 1) for name, rows in whole.items()})
  return found


def encode(model: Restored, texts: Sequence[str], where: str) -> npt.NDArray[np.integer]:
  """The tokens of texts, each with its end token, as the model's own tokenizer has them.

  Raises:
    UserError: the model has no tokenizer, or it is none.
  """
  if model.tokenizer is None:
    raise UserError(f"{where}: the model came without a tokenizer; give --tokens=FILE.npy")
  special = model.special
  encoder = tokenizer_lib.read(model.tokenizer, str(model.tokenizer), special.end, special.begin)
  end = [] if special.end is None else [special.end]
  return np.concatenate([np.append(row, end).astype(row.dtype) for row in encoder.encode(texts)])


def _with_own_metrics(path: Path, config: Config) -> Config:
  return dataclasses.replace(config, telemetry=dataclasses.replace(
      config.telemetry, user_metrics=own_metrics(path, config)))
