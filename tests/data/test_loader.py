"""Batches are a pure function of (seed, step), and windows are cut as they should be."""

import dataclasses

import numpy as np
import pytest

from of_jax.config import DataConfig, TrainConfig
from of_jax.data.folder import Corpus
from of_jax.data.loader import Batches
from of_jax.errors import UserError

T, B, WINDOWS = 8, 4, 10
DATA = DataConfig(corpus="tokens:own.bin", vocab_size=1000, eval_sequences=6)
TRAIN = TrainConfig(batch_size=B, sequence_length=T, seed=3)


def corpus(train=None, validation=None, **fields) -> Corpus:
  """Tokens that count up, so that each says where it came from."""
  train = np.arange(T * WINDOWS + 1, dtype=np.uint16) if train is None else train
  validation = np.arange(500, 500 + T * 12 + 1, dtype=np.uint16) if validation is None \
      else validation
  values = {"vocab_size": 1000, "end_token": None, "begin_token": None, "corpus_sha256": "",
            "tokenizer_sha256": "", "tokenizer_path": None, "description": ""}
  return Corpus(train, validation, **{**values, **fields})


def batches(data=DATA, train=TRAIN, rows=None, **fields) -> Batches:
  return Batches(corpus(**fields), data, train, rows)


def starts(loader: Batches, steps) -> list[int]:
  """The window numbers of the rows, in order."""
  return [int(row[0]) // T for step in steps for row in loader.train_batch(step)["inputs"]]


def test_a_batch_is_windows_and_their_next_tokens():
  batch = batches().train_batch(0)
  assert sorted(batch) == ["inputs", "targets", "weights"]
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
      "inputs": ((B, T), "int32"), "targets": ((B, T), "int32"), "weights": ((B, T), "float32")}
  assert (batch["inputs"][:, 0] % T == 0).all()
  assert np.array_equal(batch["inputs"], batch["inputs"][:, :1] + np.arange(T))
  assert np.array_equal(batch["targets"], batch["inputs"] + 1)
  assert (batch["weights"] == 1).all()


def test_every_epoch_holds_every_window_once_in_an_order_of_its_own():
  # 10 windows and 4 rows: an epoch ends in the middle of a batch.
  order = starts(batches(), range(5))
  first, second = order[:WINDOWS], order[WINDOWS:2 * WINDOWS]
  assert sorted(first) == sorted(second) == list(range(WINDOWS))
  assert first != second and first != sorted(first)


def test_batches_depend_on_seed_and_step_and_on_nothing_else():
  loader = batches()
  backwards = [loader.train_batch(step) for step in (7, 3, 0)]
  for step, batch in zip((7, 3, 0), backwards):
    fresh = batches().train_batch(step)
    assert all(np.array_equal(batch[k], fresh[k]) for k in batch)
  other = batches(train=dataclasses.replace(TRAIN, seed=4))
  assert starts(other, range(5)) != starts(loader, range(5))


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0, 3], [1, 2]], [[0, 2], [0, 2], [1, 3]]])
def test_processes_hold_rows_of_the_same_global_batch(shares):
  """Consecutive or not, alone or, where a mesh axis of other use spans them, together."""
  data = dataclasses.replace(DATA, cross_documents=False)
  parts = [batches(data, rows=np.asarray(rows), end_token=5) for rows in shares]
  whole = batches(data, end_token=5)
  for step in (0, 5):
    for key, value in whole.train_batch(step).items():
      for rows, part in zip(shares, parts):
        assert np.array_equal(part.train_batch(step)[key], value[rows]), key
  for i, expected in enumerate(whole.eval_batches()):
    for key, value in expected.items():
      for rows, part in zip(shares, parts):
        assert np.array_equal(part.eval_batches()[i][key], value[rows]), key


def test_evaluation_is_fixed_spread_and_padded_with_weight_zero():
  first, second = batches().eval_batches()
  assert [(int(row[0]) - 500) // T for row in first["inputs"]] == [0, 2, 4, 6]
  assert [(int(row[0]) - 500) // T for row in second["inputs"][:2]] == [8, 10]
  assert (second["weights"] == [[1.0] * T] * 2 + [[0.0] * T] * 2).all()
  assert (second["inputs"][2:] == 0).all() and (second["targets"][2:] == 0).all()
  assert np.array_equal(second["targets"][:2], second["inputs"][:2] + 1)
  again = batches(train=dataclasses.replace(TRAIN, seed=9)).eval_batches()
  assert np.array_equal(again[0]["inputs"], first["inputs"])


def test_begin_token_shifts_the_window_and_predicts_its_first_token():
  plain, begun = batches(), batches(dataclasses.replace(DATA, begin_token=True), begin_token=999)
  batch = begun.train_batch(2)
  assert (batch["inputs"][:, 0] == 999).all()
  assert np.array_equal(batch["targets"], plain.train_batch(2)["inputs"])
  assert np.array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
  assert (begun.eval_batches()[0]["inputs"][:, 0] == 999).all()


def test_documents_count_from_zero_and_begin_after_each_end_token():
  tokens = np.array([7, 0, 7, 7, 0, 0, 7, 7] * WINDOWS + [7], np.uint16)
  data = dataclasses.replace(DATA, cross_documents=False)
  batch = batches(data, train=TRAIN, end_token=0).train_batch(0)
  assert batch["documents"].dtype == np.int32
  loader = Batches(corpus(tokens, end_token=0), data, TRAIN)
  assert (loader.train_batch(0)["documents"] == [0, 0, 1, 1, 1, 2, 3, 3]).all()
  begun = Batches(corpus(tokens, end_token=0, begin_token=1),
                  dataclasses.replace(data, begin_token=True), TRAIN)
  assert (begun.train_batch(0)["documents"] == [0, 0, 0, 1, 1, 1, 2, 3]).all()


@pytest.mark.parametrize("fields, changes, message", [
    ({}, {"begin_token": True}, "begin_token=True: tokens:own.bin has no begin token; set "
     "data.begin_token_id"),
    ({}, {"cross_documents": False}, "cross_documents=False: tokens:own.bin has no end-of-text"),
    ({"train": np.zeros(T * B, np.uint16)}, {}, "32 train tokens make 3 windows of "
     "train.sequence_length=8, fewer than train.batch_size=4; 33 tokens would do"),
    ({"validation": np.zeros(T * 6, np.uint16)}, {}, "48 validation tokens make 5 windows of "
     "train.sequence_length=8, fewer than data.eval_sequences=6; 49 tokens would do"),
])
def test_what_cannot_be_batched_is_one_line(fields, changes, message):
  with pytest.raises(UserError) as error:
    Batches(corpus(**fields), dataclasses.replace(DATA, **changes), TRAIN)
  assert message in str(error.value)


def test_just_enough_tokens_are_enough():
  loader = Batches(corpus(np.arange(T * B + 1, dtype=np.uint16),
                          np.arange(T * 6 + 1, dtype=np.uint16)), DATA, TRAIN)
  assert sorted(starts(loader, [0])) == list(range(B))
  assert [int(b["weights"][:, 0].sum()) for b in loader.eval_batches()] == [4, 2]
