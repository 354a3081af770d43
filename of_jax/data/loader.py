"""Batches of examples. Enters: a corpus, and the config's `data` and `train` sections.
Leaves: dictionaries of NumPy arrays, each a pure function of (seed, step).
"""

import numpy as np
import numpy.typing as npt

from of_jax.config import DataConfig, TrainConfig
from of_jax.data.folder import Corpus, Tokens
from of_jax.data.images import Images
from of_jax.errors import UserError

Batch = dict[str, npt.NDArray[np.generic]]
Rows = npt.NDArray[np.int64]


class Shuffled:
  """Order of examples in batches: shuffled for training by step, fixed for evaluation.

  A subclass makes a batch of the examples of its kind.
  """

  def __init__(self, train_examples: int, validation_examples: int, data: DataConfig,
               train: TrainConfig, rows: Rows | None):
    import grain
    self._batch_size = train.batch_size
    self._rows = np.arange(self._batch_size) if rows is None else rows
    self._order = grain.MapDataset.range(train_examples).seed(train.seed).shuffle().repeat()
    self._evaluated = np.arange(data.eval_sequences) * validation_examples // data.eval_sequences

  def train_batch(self, step: int) -> Batch:
    """Makes this process's rows of the batch of `step`, which counts from 0."""
    first = step * self._batch_size
    examples = [self._order[first + int(row)] for row in self._rows]
    return self._batch("train", np.asarray(examples, np.int64), len(examples))

  def eval_batches(self) -> list[Batch]:
    """Makes this process's rows of every evaluation batch.

    Its `data.eval_sequences` examples are evenly spread over the validation set.
    """
    batches = []
    for start in range(0, len(self._evaluated), self._batch_size):
      examples = self._evaluated[start:start + self._batch_size]
      # Rows ascend, so those that only fill the last batch come last.
      filled = self._rows[self._rows < len(examples)]
      batches.append(self._batch("validation", examples[filled], len(self._rows)))
    return batches

  def _batch(self, part: str, examples: npt.NDArray[np.int64], rows: int) -> Batch:
    """Makes a batch of these examples, filled up to `rows` with rows of zeros and weight 0."""
    raise NotImplementedError


class Batches(Shuffled):
  """Batches of tokens: shuffled windows for training by step, and the fixed evaluation set.

  Tokens are cut into windows of T + 1, each beginning with the last token of the one before, so
  that every token is predicted once an epoch. With `data.begin_token` a window's inputs are the
  begin token and its first T - 1 tokens, and its targets are its first T.

  Every batch has, with B rows for this process:
    inputs, targets: int32 [B, T].
    weights: float32 [B, T]; 0 in rows that only fill the last evaluation batch, else 1.
    documents: int32 [B, T], only without `data.cross_documents`: the document of each input in
      its window, from 0; the token after an end token begins the next one.
  """

  def __init__(self, corpus: Corpus, data: DataConfig, train: TrainConfig,
               rows: Rows | None = None):
    """Plans the order of windows; reads no token.

    Args:
      corpus: the tokens, from `corpora.prepare`.
      data, train: sections of a resolved config; `train.batch_size` counts all processes' rows.
      rows: this process's rows of a batch, ascending; default all. The whole batch is the same
        however processes share it.

    Raises:
      UserError: too few tokens, or a special token is asked for that the corpus does not have.
    """
    self._corpus, self._length = corpus, train.sequence_length
    where = f"config.data.corpus={data.corpus}"
    if data.begin_token and corpus.begin_token is None:
      raise UserError(f"config.data.begin_token=True: {data.corpus} has no begin token"
                      + _remedy(data, "begin_token_id"))
    if not data.cross_documents and corpus.end_token is None:
      raise UserError(f"config.data.cross_documents=False: {data.corpus} has no end-of-text token "
                      "to tell documents apart" + _remedy(data, "end_token_id"))
    self._begin = corpus.begin_token if data.begin_token else None
    self._end = None if data.cross_documents else corpus.end_token
    train_windows = _require(where, "train", corpus.train, self._length,
                             "train.batch_size", train.batch_size)
    windows = _require(where, "validation", corpus.validation, self._length,
                       "data.eval_sequences", data.eval_sequences)
    super().__init__(train_windows, windows, data, train, rows)

  def _batch(self, part: str, windows: npt.NDArray[np.int64], rows: int) -> Batch:
    tokens = self._corpus.train if part == "train" else self._corpus.validation
    positions = windows[:, None] * self._length + np.arange(self._length + 1)
    window_BxT1 = np.zeros((rows, self._length + 1), np.int32)
    window_BxT1[:len(windows)] = tokens[positions]
    inputs_BxT, targets_BxT = window_BxT1[:, :-1], window_BxT1[:, 1:]
    if self._begin is not None:
      targets_BxT = inputs_BxT
      inputs_BxT = np.full_like(targets_BxT, self._begin)
      inputs_BxT[:, 1:] = targets_BxT[:, :-1]
    weights_BxT = np.zeros(inputs_BxT.shape, np.float32)
    weights_BxT[:len(windows)] = 1
    batch: Batch = {"inputs": np.ascontiguousarray(inputs_BxT),
                    "targets": np.ascontiguousarray(targets_BxT), "weights": weights_BxT}
    if self._end is not None:
      documents_BxT = np.zeros_like(batch["inputs"])
      documents_BxT[:, 1:] = np.cumsum(inputs_BxT[:, :-1] == self._end, axis=1)
      batch["documents"] = documents_BxT
    return batch


class ImageBatches(Shuffled):
  """Batches of images: each once an epoch for training by step, and the fixed evaluation set.

  Every batch has, with B rows for this process:
    inputs: float32 [B, 1, input size], whitened.
    targets: int32 [B, 1], the class.
    weights: float32 [B, 1]; 0 in rows that only fill the last evaluation batch, else 1.
  """

  def __init__(self, images: Images, data: DataConfig, train: TrainConfig,
               rows: Rows | None = None):
    """Plans the order of images; reads none. The arguments are those of `Batches`.

    Raises:
      UserError: too few images.
    """
    for part, count, field, need in (
        ("train", len(images.train), "train.batch_size", train.batch_size),
        ("validation", len(images.validation), "data.eval_sequences", data.eval_sequences)):
      if count < need:
        raise UserError(f"config.data.corpus={data.corpus}: has {count:,} {part} images, fewer "
                        f"than {field}={need}")
    self._images = images
    super().__init__(len(images.train), len(images.validation), data, train, rows)

  def _batch(self, part: str, examples: npt.NDArray[np.int64], rows: int) -> Batch:
    images, labels = ((self._images.train, self._images.train_labels) if part == "train"
                      else (self._images.validation, self._images.validation_labels))
    batch: Batch = {"inputs": np.zeros((rows, 1, images.shape[1]), np.float32),
                    "targets": np.zeros((rows, 1), np.int32),
                    "weights": np.zeros((rows, 1), np.float32)}
    batch["inputs"][:len(examples), 0] = images[examples]
    batch["targets"][:len(examples), 0] = labels[examples]
    batch["weights"][:len(examples)] = 1
    return batch


def make_batches(corpus: Corpus | Images, data: DataConfig, train: TrainConfig,
                 rows: Rows | None = None) -> Shuffled:
  """Makes the batches of a corpus of tokens or of images; see `Batches` and `ImageBatches`.

  Raises:
    UserError: too little data, or a special token that the corpus does not have.
  """
  if isinstance(corpus, Images):
    return ImageBatches(corpus, data, train, rows)
  return Batches(corpus, data, train, rows)


def _require(where: str, part: str, tokens: Tokens, length: int, field: str, need: int) -> int:
  """Counts the windows that `tokens` make; raises UserError if there are fewer than `need`."""
  windows = max(0, (len(tokens) - 1) // length)
  if windows < need:
    raise UserError(
        f"{where}: {len(tokens):,} {part} tokens make {windows:,} windows of "
        f"train.sequence_length={length}, fewer than {field}={need}; "
        f"{need * length + 1:,} tokens would do")
  return windows


def _remedy(data: DataConfig, field: str) -> str:
  return f"; set data.{field}" if data.corpus.startswith("tokens:") else ""
