"""Batches. Enters: a corpus, and the config's `data` and `train` sections.
Leaves: dictionaries of NumPy arrays, each a pure function of (seed, step).
"""

import numpy as np
import numpy.typing as npt

from of_jax.config import DataConfig, TrainConfig
from of_jax.data.folder import Corpus, Tokens
from of_jax.errors import UserError

Batch = dict[str, npt.NDArray[np.generic]]


class Batches:
  """Shuffled training batches by step, and the fixed evaluation set.

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
               process_index: int = 0, process_count: int = 1):
    """Plans the order of windows; reads no token.

    Args:
      corpus: from `corpora.prepare`.
      data, train: of the resolved config; `train.batch_size` counts all processes' rows.
      process_index, process_count: this process's rows of a batch are the contiguous share
        number `process_index`; the whole batch is the same for every count.

    Raises:
      UserError: too few tokens, or a special token is asked for that the corpus does not have.
    """
    import grain
    self._corpus, self._length = corpus, train.sequence_length
    self._batch_size = train.batch_size
    if self._batch_size % process_count:
      raise UserError(f"config.train.batch_size={self._batch_size}: cannot be split over "
                      f"{process_count} processes")
    share = self._batch_size // process_count
    self._rows = slice(process_index * share, (process_index + 1) * share)
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
                             "train.batch_size", self._batch_size)
    windows = _require(where, "validation", corpus.validation, self._length,
                       "data.eval_sequences", data.eval_sequences)
    self._order = grain.MapDataset.range(train_windows).seed(train.seed).shuffle().repeat()
    self._eval_windows = np.arange(data.eval_sequences) * windows // data.eval_sequences

  def train_batch(self, step: int) -> Batch:
    """This process's rows of the batch of `step`, which counts from 0."""
    first = step * self._batch_size
    windows = [self._order[first + row] for row in range(self._batch_size)[self._rows]]
    return self._batch(self._corpus.train, np.asarray(windows, np.int64), len(windows))

  def eval_batches(self) -> list[Batch]:
    """This process's rows of every evaluation batch: windows evenly spread over validation."""
    batches = []
    for start in range(0, len(self._eval_windows), self._batch_size):
      windows = self._eval_windows[start:start + self._batch_size][self._rows]
      batches.append(self._batch(self._corpus.validation, windows,
                                 self._rows.stop - self._rows.start))
    return batches

  def _batch(self, tokens: Tokens, windows: npt.NDArray[np.int64], rows: int) -> Batch:
    """The batch of these windows, filled up to `rows` with rows of zeros and weight 0."""
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


def _require(where: str, part: str, tokens: Tokens, length: int, field: str, need: int) -> int:
  """How many windows `tokens` make, if there are at least `need`."""
  windows = max(0, (len(tokens) - 1) // length)
  if windows < need:
    raise UserError(
        f"{where}: {len(tokens):,} {part} tokens make {windows:,} windows of "
        f"train.sequence_length={length}, fewer than {field}={need}; "
        f"{need * length + 1:,} tokens would do")
  return windows


def _remedy(data: DataConfig, field: str) -> str:
  return f"; set data.{field}" if data.corpus.startswith("tokens:") else ""
