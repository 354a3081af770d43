"""Headerless tokens are what the config says, or one line says what they seem to be."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from of_jax.config import DataConfig
from of_jax.data import corpora, token_layout
from of_jax.errors import UserError

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 50_257, 6000)


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., DataConfig]:
  """A DataConfig of own.bin in tmp_path, whose vocabulary no uint16 is outside of."""
  return lambda **fields: DataConfig(**{
      "corpus": f"tokens:{tmp_path / 'own.bin'}", "vocab_size": 65_536,
      "validation_fraction": 0.1, "cache_dir": str(tmp_path / "cache"), **fields})


def packed(write: Callable[[io.BytesIO], object]) -> bytes:
  file = io.BytesIO()
  write(file)
  return file.getvalue()


def a_zip(file: io.BytesIO) -> None:
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("a.txt", "text" * 50)


def a_tar(file: io.BytesIO) -> None:
  with tarfile.open(fileobj=file, mode="w") as archive:
    archive.addfile(tarfile.TarInfo("a.txt"))


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
U16 = TOKENS.astype("<u2")
# A kind of file -> its bytes, and what the line says that it is.
KINDS = {
    "npy": (packed(lambda f: np.save(f, U16)), "a NumPy array (.npy); give it the name .npy"),
    "npz": (packed(lambda f: np.savez(f, U16)), "a zip archive, such as .npz"),
    "zip": (packed(a_zip), "a zip archive"),
    "tar": (packed(a_tar), "a tar archive; unpack it first"),
    "gzip": (gzip.compress(U16.tobytes()), "compressed by gzip; unpack it first"),
    "bzip2": (bz2.compress(U16.tobytes()), "compressed by bzip2"),
    "xz": (lzma.compress(U16.tobytes()), "compressed by xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + U16.tobytes(), "compressed by zstd"),
    "pickle 5": (pickle.dumps(TOKENS.tolist(), 5), "a Python pickle"),
    "pickle 2": (pickle.dumps(TOKENS.tolist(), 2), "a Python pickle"),
    "safetensors": (struct.pack("<Q", len(HEADER)) + HEADER + bytes(36), "weights (safetensors)"),
    "gguf": (b"GGUF\3\0\0\0" + U16.tobytes(), "a model's weights (GGUF)"),
    "idx": (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2), "index of a Megatron data set"),
    "LitGPT": (b"LITPKDS" + struct.pack("<QBQ", 1, 8, 6000) + U16.tobytes(), "set of LitGPT"),
    "llm.c": (struct.pack("<4i", 20240326, 3, 64, 97) + bytes(1008) + U16.tobytes(),
              "weights as llm.c"),
    "llm.c's state": (struct.pack("<2i", 20240527, 1) + U16.tobytes(), "state of a run of llm.c"),
    "avro": (b"Obj\x01\x04\x16" + U16.tobytes(), "an Avro file"),
    "feather": (b"FEA1\0\0\0\0" + U16.tobytes(), "a Feather file"),
    "rar": (b"Rar!\x1a\x07\x01\0" + U16.tobytes(), "a RAR archive; unpack it first"),
    "zlib": (zlib.compress(U16.tobytes()), "compressed by zlib; unpack it first"),
    "parquet": (b"PAR1" + U16.tobytes(), "a Parquet file"),
    "text": (b"Plain words, one after the other. " * 9, "it is text; save token ids as .npy"),
    "more text": ("Ein Wörterbuch für große Füße. ".encode() * 9, "it is text"),
    "json": (json.dumps(TOKENS[:40].tolist()).encode(), "it is JSON"),
    "json lines": (b'{"text": "a line of it"}\n' * 6, "it is JSON"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_is_refused_by_its_name(kind, data, tmp_path, log):
  raw, words = KINDS[kind]
  (tmp_path / "own.bin").write_bytes(raw + bytes(len(raw) % 2))
  with pytest.raises(UserError, match="own.bin is not headerless tokens: it is ") as error:
    corpora.prepare(data(), log)
  assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("form, says", [
    ("<Q", "first 8 bytes say that 6,000 tokens"), ("<I", "first 4 bytes say that 6,000 tokens")])
def test_a_count_in_front_is_a_header(form, says, data, tmp_path, log):
  assert len(U16) == 6000
  for count, words in ((6000, says), (12_000, says.replace("6,000 tokens", "12,000 bytes"))):
    (tmp_path / "own.bin").write_bytes(struct.pack(form, count) + U16.tobytes())
    with pytest.raises(UserError, match=words):
      corpora.prepare(data(), log)
  # Of uint32 the first of four bytes is a token.
  (tmp_path / "own.bin").write_bytes(struct.pack("<I", 6000) + TOKENS.astype("<u4").tobytes())
  assert len(corpora.prepare(data(token_dtype="uint32"), log).train) > 5000


def test_a_token_that_is_zlibs_mark_is_a_token(data, tmp_path, log):
  for first in (0x9C78, 0x0178, 0xDA78, 0x5E78):
    np.append(np.uint16(first), U16).astype("<u2").tofile(tmp_path / "own.bin")
    assert corpora.prepare(data(), log).train[0] == first


# How ids were written, and what they are read as -> what they seem to be, and what to do.
WRITTEN = {
    ("<u4", "uint16"): ("int32 or uint32, not uint16", "set config.data.token_dtype=uint32"),
    ("<i8", "uint16"): ("int64 or uint64, not uint16", "save it as .npy"),
    (">u4", "uint16"): ("big-endian int32 or uint32", "save it as .npy"),
    (">i8", "uint16"): ("big-endian int64 or uint64", "save it as .npy"),
    (">u2", "uint16"): ("big-endian uint16", "save it as .npy"),
    ("<f4", "uint16"): ("float32", "save it as .npy"),
    ("<f8", "uint16"): ("float64", "save it as .npy of uint16"),
    ("<i8", "uint32"): ("int64 or uint64, not uint32", "save it as .npy"),
    (">i8", "uint32"): ("big-endian int64 or uint64, not uint32", "save it as .npy"),
    ("<f4", "uint32"): ("float32, not uint32", "save it as .npy"),
}
IDS = {
    "of GPT-2's vocabulary": TOKENS, "few": TOKENS[:60],
    "of 65 characters": RNG.integers(0, 65, 6000),
    "padded": np.pad(RNG.integers(1, 50_257, 3000), (0, 30_000)),
    "by Zipf's law": np.minimum(RNG.zipf(1.1, 6000), 50_000),
}


@pytest.mark.parametrize("written, read", WRITTEN)
@pytest.mark.parametrize("ids", IDS)
def test_ids_of_another_type_are_refused(written, read, ids, data, tmp_path, log):
  if ids == "few" and written == ">u2":
    pytest.skip("sixty tokens do not tell")
  IDS[ids].astype(written).tofile(tmp_path / "own.bin")
  seems, remedy = WRITTEN[written, read]
  with pytest.raises(UserError, match=f"own.bin seems to hold {seems}.*; {remedy}"):
    corpora.prepare(data(token_dtype=read, vocab_size=2 ** 32 if read == "uint32" else 65_536), log)


@pytest.mark.parametrize("largest", [65_535, 128_255, 261_999])
def test_large_vocabularies_and_labels_left_out_are_known_too(largest, data, tmp_path, log):
  tokens = RNG.integers(0, largest, 3000)
  tokens[::7] = -100
  for dtype, seems in (("<i4", "int32 or uint32"), ("<i8", "int")):
    tokens.astype(dtype).tofile(tmp_path / "own.bin")
    with pytest.raises(UserError, match=f"seems to hold {seems}"):
      corpora.prepare(data(), log)


def test_bytes_as_tokens_are_known(data, tmp_path, log):
  RNG.integers(0, 65, 9000).astype("u1").tofile(tmp_path / "own.bin")
  with pytest.raises(UserError, match="seems to hold uint8, not uint16"):
    corpora.prepare(data(), log)


def bfloat16(ids: np.ndarray) -> np.ndarray:
  return (ids.astype("<f4").view("<u4") >> 16).astype("<u2")


@pytest.mark.parametrize("ids", IDS)
def test_ids_as_floats_of_two_bytes_are_refused(ids, data, tmp_path, log):
  if ids == "few":
    pytest.skip("sixty tokens do not tell")
  many = np.append(IDS[ids], RNG.integers(0, IDS[ids].max(), 30_000))  # Some below 128.
  for name, raw in (("float16", IDS[ids].astype("<f2")), ("bfloat16", bfloat16(many))):
    raw.tofile(tmp_path / "own.bin")
    with pytest.raises(UserError, match=f"own.bin seems to hold {name}, not uint16: every number"):
      corpora.prepare(data(), log)


@pytest.mark.parametrize("first, last", [
    (0x3C00, 0x7C00), (0x3C00, 0x6400), (0x5800, 0x6C00), (0x6400, 0x7C00), (0x3F80, 0x4900),
    (0x3F80, 0x4300), (0x4300, 0x4900)])
def test_vocabularies_where_halves_have_their_whole_numbers_are_never_refused(first, last):
  for length in (24, 1000, 30_000):
    for step in (1, 2, 8):
      for name, tokens in legitimate((last - first) // step, length).items():
        raw = (first + step * tokens).astype("<u2")
        for padded in (raw, np.concatenate([raw, np.zeros(64, "<u2")])):
          assert token_layout.suspicion(padded.view(np.uint8), 2) is None, (name, length, step)


def test_a_few_multiples_of_256_are_no_other_type():
  """Three ids that happen to be such multiples, beside padding; four and more tell."""
  for ids, is_told in (([0x4300], False), ([0x4300, 0x4500, 0x4700], False),
                       ([0x4300, 0x4500, 0x4700, 0x4900], True)):
    raw = np.concatenate([np.repeat(ids, 24), np.zeros(64)]).astype("<u2")
    assert (token_layout.suspicion(raw.view(np.uint8), 2) is not None) == is_told, ids


def test_a_file_of_one_token_is_said_to_be_that(data, tmp_path, log):
  for token in (0, 1001):
    np.full(6000, token, "<u2").tofile(tmp_path / "own.bin")
    corpora.prepare(data(), log)
    assert f"all 5,400 train tokens of own.bin are {token}; a file that was made" in " ".join(log)
  log.clear()
  U16.tofile(tmp_path / "own.bin")
  corpora.prepare(data(), log)
  assert not log


def test_a_npy_of_objects_is_not_told_to_be_npy(data, tmp_path, log):
  np.save(tmp_path / "own.npy", np.array([[1], [2, 3]], object))
  with pytest.raises(UserError, match="it holds object, and no plain numbers$"):
    corpora.prepare(data(corpus=f"tokens:{tmp_path / 'own.npy'}"), log)


def legitimate(size: int, length: int) -> dict[str, np.ndarray]:
  """Tokens of a vocabulary of `size` that nobody should take for something else."""
  rng = np.random.default_rng([size, length])
  tokens = rng.integers(0, size, length)
  few = rng.choice(size, min(size, 20), replace=False)[rng.integers(0, min(size, 20), length)]
  many = np.arange(length)
  special = np.where(many % 30 == 0, size - 1 - many % 7 % size, tokens % 150)
  return {
      "uniform": tokens, "Zipf": np.minimum(rng.zipf(1.1, length), size) - 1, "few kinds": few,
      "padded by 0": np.where(many < length // 3, tokens, 0),
      "padded by the last": np.where(many < length // 3, tokens, size - 1),
      "mostly 0": np.where(rng.random(length) < 0.03, tokens, 0), "sorted": np.sort(tokens),
      "counting": many % size, "one kind": np.full(length, size - 1),
      "specials far above": special.clip(0, size - 1),
      "multiples of 2": tokens // 2 * 2, "multiples of 8": tokens // 8 * 8}


@pytest.mark.parametrize("size", [2, 3, 16, 17, 65, 256, 257, 1000, 4096, 32_000, 50_257, 65_536])
def test_legitimate_tokens_are_never_refused(size):
  for length in (1, 7, 24, 101, 1000, 30_000):
    for name, tokens in legitimate(size, length).items():
      for dtype in ("<u2", "<u4"):
        raw = tokens.astype(dtype).view(np.uint8)
        assert token_layout.suspicion(raw, int(dtype[2])) is None, (name, size, length, dtype)


def test_the_way_out_is_npy_and_it_is_true(data, tmp_path, log):
  """Tokens that look like another type's, every second one 0, are read where the type is named."""
  tokens = np.zeros(2000, np.uint16)
  tokens[::2] = RNG.integers(0, 50_257, 1000)
  tokens.tofile(tmp_path / "own.bin")
  with pytest.raises(UserError, match="if it is uint16 all the same, save it as .npy"):
    corpora.prepare(data(), log)
  np.save(tmp_path / "own.npy", tokens)
  corpus = corpora.prepare(data(corpus=f"tokens:{tmp_path / 'own.npy'}"), log)
  assert np.array_equal(np.concatenate([corpus.train, corpus.validation]), tokens)


@pytest.mark.parametrize("written, read, remedy", [
    ("<u2", "uint32", "read as uint16, every token would be: if it is that, set config.data."),
    (">u2", "uint16", "read as big-endian uint16, every token would be"),
    (">u4", "uint32", "read as big-endian uint32, every token would be"),
    ("<f2", "uint16", "read as float16, every token would be: if it is that, save its ids as")])
def test_a_token_out_of_range_says_as_what_all_would_be_in_it(
    written, read, remedy, data, tmp_path, log):
  # Too few to tell by their distribution.
  RNG.integers(256, 1000, 80).astype(written).tofile(tmp_path / "own.bin")
  with pytest.raises(UserError, match=re.escape(remedy)):
    corpora.prepare(data(token_dtype=read, vocab_size=1000), log)


def llmc(path: Path, tokens: np.ndarray, magic: int, version: int, count: int) -> None:
  header = np.zeros(256, "<i4")
  header[:3] = magic, version, count
  path.write_bytes(header.tobytes() + tokens.tobytes())


@pytest.mark.parametrize("magic, version, dtype", [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
def test_a_shard_of_llm_c_is_read_behind_its_header(magic, version, dtype, data, tmp_path, log):
  llmc(tmp_path / "own.bin", TOKENS.astype(dtype), magic, version, len(TOKENS))
  corpus = corpora.prepare(data(), log)
  assert np.array_equal(np.concatenate([corpus.train, corpus.validation]), TOKENS)
  assert "as its header of llm.c says" in log[0]
  U16.tofile(tmp_path / "plain.bin")
  plain = corpora.prepare(data(corpus=f"tokens:{tmp_path / 'plain.bin'}"), log)
  assert plain.corpus_sha256 == corpus.corpus_sha256
  llmc(tmp_path / "own.bin", TOKENS.astype(dtype)[:-1], magic, version, len(TOKENS))
  with pytest.raises(UserError, match="says 6,000 tokens of uint.*, and holds 5,999; it is cut"):
    corpora.prepare(data(), log)
  llmc(tmp_path / "own.bin", TOKENS.astype(dtype), magic, 3, len(TOKENS))
  with pytest.raises(UserError, match="a header of llm.c of version 3, which is not known here"):
    corpora.prepare(data(), log)


def megatron(path: Path, tokens: np.ndarray, code: int, sizes: list[int], version: int = 1) -> None:
  path.write_bytes(tokens.tobytes())
  offsets = np.cumsum([0, *sizes[:-1]]) * tokens.itemsize
  path.with_suffix(".idx").write_bytes(
      b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, len(sizes), len(sizes) + 1)
      + np.array(sizes, "<i4").tobytes() + offsets.astype("<i8").tobytes()
      + np.arange(len(sizes) + 1, dtype="<i8").tobytes())


@pytest.mark.parametrize("code, dtype", [(8, "<u2"), (4, "<i4"), (5, "<i8")])
def test_megatrons_tokens_are_of_the_type_that_their_index_says(code, dtype, data, tmp_path, log):
  megatron(tmp_path / "own.bin", TOKENS.astype(dtype), code, [1000, 2000, 3000])
  corpus = corpora.prepare(data(), log)
  assert np.array_equal(np.concatenate([corpus.train, corpus.validation]), TOKENS)
  assert "as its index own.idx of Megatron says" in log[0]
  for change, words in (
      ({"sizes": [1000, 2000]}, "and its index own.idx says"),
      ({"code": 7}, "of version 1 and type 7"), ({"version": 2}, "of version 2")):
    megatron(tmp_path / "own.bin", TOKENS.astype(dtype),
             **{"code": code, "sizes": [1000, 2000, 3000], **change})
    with pytest.raises(UserError, match=words):
      corpora.prepare(data(), log)
  (tmp_path / "own.idx").write_bytes((tmp_path / "own.idx").read_bytes()[:20])
  with pytest.raises(UserError, match="own.idx, the index of own.bin, is cut off"):
    corpora.prepare(data(), log)


def test_two_bytes_of_a_mark_are_tokens(data, tmp_path, log):
  # The marks of gzip, pickle, bzip2 and zip, the first with a method and flags that it can have.
  for first in ([0x8b1f, 0x0008], [0x0280], [0x0580], [0x5a42], [0x4b50]):
    tokens = RNG.integers(0, 65_536, 3000).astype("<u2")
    tokens[:len(first)] = first
    tokens.tofile(tmp_path / "own.bin")
    assert corpora.prepare(data(), log).train[:len(first)].tolist() == first


def test_another_name_is_told_by_its_content(data, tmp_path, log):
  np.savez(tmp_path / "own.npz", TOKENS)
  (tmp_path / "own.npy").write_bytes(gzip.compress(U16.tobytes()))
  for name, words in (("own.npz", "neither a .bin nor a .npy file: it is a zip archive"),
                      ("own.npy", "not a .npy file of numbers.*: it is compressed by gzip")):
    with pytest.raises(UserError, match=words):
      corpora.prepare(data(corpus=f"tokens:{tmp_path / name}"), log)
