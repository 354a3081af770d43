"""A user's own tokens: files, folders, remote files, and what is wrong with them."""

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from of_jax.config import DataConfig
from of_jax.data import corpora
from of_jax.errors import UserError


@pytest.fixture
def tokens_data(tmp_path: Path) -> Callable[..., DataConfig]:
  return lambda path, **fields: DataConfig(**{
      "corpus": f"tokens:{path}", "vocab_size": 1000, "validation_fraction": 0.1,
      "cache_dir": str(tmp_path / "cache"), **fields})


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_bin_has_the_configs_type_and_its_end_is_validation(tmp_path, tokens_data, log, dtype):
  tokens = np.arange(1000, dtype=dtype)
  tokens.tofile(tmp_path / "own.bin")
  corpus = corpora.prepare(tokens_data(
      tmp_path / "own.bin", token_dtype=dtype, end_token_id=5, begin_token_id=6), log)
  assert np.array_equal(corpus.train, tokens[:900])
  assert np.array_equal(corpus.validation, tokens[900:])
  assert (corpus.end_token, corpus.begin_token, corpus.vocab_size) == (5, 6, 1000)
  assert isinstance(corpus.train, np.memmap)
  assert corpus.description == (f"tokens:{tmp_path / 'own.bin'}: 900 train and 100 validation "
                                "tokens, tokenizer unknown")


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32", "int64"])
def test_npy_of_every_integer_type(tmp_path, tokens_data, log, dtype):
  np.save(tmp_path / "own.npy", np.arange(500, dtype=dtype))
  corpus = corpora.prepare(tokens_data(tmp_path / "own.npy"), log)
  assert corpus.train.tolist() + corpus.validation.tolist() == list(range(500))
  assert (corpus.end_token, corpus.begin_token) == (None, None)


def test_the_hash_is_of_the_tokens_and_the_split(tmp_path, tokens_data, log):
  np.arange(500, dtype="uint16").tofile(tmp_path / "own.bin")
  np.save(tmp_path / "own.npy", np.arange(500, dtype="int32"))
  hashes = [corpora.prepare(tokens_data(tmp_path / name, validation_fraction=fraction), log)
            .corpus_sha256 for name, fraction in
            (("own.bin", 0.1), ("own.npy", 0.1), ("own.bin", 0.2))]
  assert hashes[0] == hashes[1] != hashes[2]
  changed = np.arange(500, dtype="uint16")
  changed[7] = 8
  changed.tofile(tmp_path / "own.bin")
  assert corpora.prepare(tokens_data(tmp_path / "own.bin"), log).corpus_sha256 != hashes[0]


def test_a_folder_of_two_files(tmp_path, tokens_data, log):
  np.arange(300, dtype="uint16").tofile(tmp_path / "train.bin")
  np.save(tmp_path / "validation.npy", np.arange(50, dtype="int32"))
  corpus = corpora.prepare(tokens_data(tmp_path), log)
  assert (len(corpus.train), len(corpus.validation)) == (300, 50)
  (tmp_path / "train.bin").unlink()
  with pytest.raises(UserError, match=r"the folder has no train\.bin or train\.npy"):
    corpora.prepare(tokens_data(tmp_path), log)


@pytest.mark.parametrize("dtype, token, position, file, at", [
    ("uint16", 1000, 950, "own.bin", 950), ("uint16", 65535, 3, "own.bin", 3),
    ("int64", -1, 920, "own.npy", 920), ("int32", 70000, 0, "own.npy", 0)])
def test_a_token_without_an_embedding_is_named_with_its_position(
    tmp_path, tokens_data, log, dtype, token, position, file, at):
  tokens = np.arange(1000, dtype=dtype)
  tokens[position] = token
  tokens.tofile(tmp_path / file) if file.endswith("bin") else np.save(tmp_path / file, tokens)
  message = (f"token {token} at position {at} of {file} is not in "
             "[0, config.data.vocab_size=1000)")
  with pytest.raises(UserError, match=re.escape(message)):
    corpora.prepare(tokens_data(tmp_path / file), log)
  tokens[position] = 999
  tokens.tofile(tmp_path / file) if file.endswith("bin") else np.save(tmp_path / file, tokens)
  corpora.prepare(tokens_data(tmp_path / file), log)


@pytest.mark.parametrize("name, write, message", [
    ("gone.bin", lambda path: None, "no such file or folder"),
    ("own.bin", lambda path: path.write_bytes(b""), "own.bin is empty"),
    ("own.bin", lambda path: path.write_bytes(b"123"), "own.bin has 3 bytes, no multiple of the 2"),
    ("own.bin", lambda path: path.write_bytes(b"1\0"), "no validation tokens in own.bin"),
    ("own.txt", lambda path: path.write_text("1 2 3"), "own.txt is neither a .bin nor a .npy"),
    ("own.npy", lambda path: path.write_bytes(b"123"), "own.npy is not a .npy file of numbers"),
    ("own.npy", lambda path: np.save(path, np.zeros(9)), "holds float64 of shape (9,)"),
    ("own.npy", lambda path: np.save(path, np.zeros((2, 9), "int32")), "holds int32 of shape (2,"),
    ("own.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "not a .npy file"),
])
def test_a_file_that_is_not_tokens_is_one_line(tmp_path, tokens_data, log, name, write, message):
  path = tmp_path / name
  write(path)
  with pytest.raises(UserError, match=re.escape(message)) as error:
    corpora.prepare(tokens_data(path), log)
  assert "\n" not in str(error.value) and str(error.value).startswith("config.data.corpus=tokens:")


def test_a_prepared_folder_brings_its_ids_and_tokenizer(make_data, log):
  built = corpora.prepare(make_data(), log)
  folder = built.tokenizer_path.parent
  corpus = corpora.prepare(make_data(corpus=f"tokens:{folder}"), log)
  assert np.array_equal(corpus.train, built.train)
  assert (corpus.end_token, corpus.begin_token, corpus.tokenizer_path) == (
      0, 1, built.tokenizer_path)
  assert corpus.corpus_sha256 == built.corpus_sha256
  override = corpora.prepare(make_data(corpus=f"tokens:{folder}", end_token_id=9), log)
  assert (override.end_token, override.begin_token) == (9, 1)
  with pytest.raises(UserError, match="300 tokens, more than config.data.vocab_size=299"):
    corpora.prepare(make_data(corpus=f"tokens:{folder}", vocab_size=299), log)
  (folder / "train.bin").write_bytes(b"")
  with pytest.raises(UserError, match="train.bin is truncated; make the folder again"):
    corpora.prepare(make_data(corpus=f"tokens:{folder}"), log)


class Cloud:
  """An etils.epath whose gs:// paths are files of a local folder; counts the reads."""

  def __init__(self, root: Path, short: bool = False):
    self.root, self.reads, self.short = root, 0, short

  def Path(self, url: str) -> "RemotePath":
    return RemotePath(self, self.root / url.removeprefix("gs://"))


class RemotePath:

  def __init__(self, cloud: Cloud, path: Path):
    self.cloud, self.path, self.name = cloud, path, path.name

  def is_dir(self) -> bool:
    return self.path.is_dir()

  def exists(self) -> bool:
    return self.path.exists()

  def iterdir(self):
    return [RemotePath(self.cloud, p) for p in self.path.iterdir()]

  def __truediv__(self, name: str) -> "RemotePath":
    return RemotePath(self.cloud, self.path / name)

  def stat(self):
    stat = self.path.stat()
    return types.SimpleNamespace(length=stat.st_size + self.cloud.short, mtime=stat.st_mtime_ns)

  def open(self, mode: str):
    self.cloud.reads += 1
    return self.path.open(mode)


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> Cloud:
  import etils
  fake = Cloud(tmp_path / "cloud")
  (fake.root / "bucket").mkdir(parents=True)
  monkeypatch.setitem(sys.modules, "etils.epath", fake)
  monkeypatch.setattr(etils, "epath", fake, raising=False)
  return fake


def test_a_remote_file_is_copied_once_and_again_when_it_changes(cloud, tokens_data, log):
  path = cloud.root / "bucket" / "own.bin"
  np.arange(500, dtype="uint16").tofile(path)
  for _ in range(2):
    corpus = corpora.prepare(tokens_data("gs://bucket/own.bin"), log)
    assert corpus.train.tolist() == list(range(450)) and cloud.reads == 1
  assert len(log) == 1 and "copying" in log[0]
  np.arange(400, dtype="uint16").tofile(path)
  assert len(corpora.prepare(tokens_data("gs://bucket/own.bin"), log).train) == 360


def test_a_remote_prepared_folder(cloud, make_data, tokens_data, log):
  built = corpora.prepare(make_data(), log)
  built.tokenizer_path.parent.rename(cloud.root / "bucket" / "code")
  corpus = corpora.prepare(tokens_data("gs://bucket/code"), log)
  assert np.array_equal(corpus.train, built.train) and corpus.end_token == 0
  assert cloud.reads == 4


def test_remote_mistakes_are_one_line_and_leave_nothing(
    cloud, tokens_data, tmp_path, log, monkeypatch):
  with pytest.raises(UserError, match="gs://bucket/own.bin: no such file or folder"):
    corpora.prepare(tokens_data("gs://bucket/own.bin"), log)
  np.arange(500, dtype="uint16").tofile(cloud.root / "bucket" / "own.bin")
  cloud.short = True  # The copy ends before the length that the store announced.
  with pytest.raises(UserError, match="own.bin ended after 1000 of 1001 bytes"):
    corpora.prepare(tokens_data("gs://bucket/own.bin"), log)
  assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []

  def unreachable(_):
    raise ImportError("Please install gcsfs")
  monkeypatch.setattr(cloud, "Path", unreachable)
  with pytest.raises(UserError, match=r"Please install gcsfs; run pip install -e '\.\[gcs\]'"):
    corpora.prepare(tokens_data("gs://bucket/own.bin"), log)
