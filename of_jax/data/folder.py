"""A token folder: train.bin, validation.bin, tokenizer.json, and meta.json that vouches for them.

Enters: encoded documents, or a folder's path. Leaves: a `Corpus` whose arrays are memory maps.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1
META, TOKENIZER = "meta.json", "tokenizer.json"
PARTS = ("train", "validation")

Tokens = npt.NDArray[np.integer]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Tokens to train on and to validate on.

  Attributes:
    train, validation: memory maps [tokens] of an integer type (uint16 or uint32 where this project
      wrote them).
    vocab_size: every token is below it; at most the config's.
    end_token: ends every document; None where a user's tokens have none.
    begin_token: what `data.begin_token` puts first in a window, or None.
    corpus_sha256: hash of the documents' names and texts, or of a user's tokens.
    tokenizer_sha256: hash of tokenizer.json, or "" where a user's tokens came without one.
    tokenizer_path: that tokenizer.json, or None.
    description: one line: name, documents, tokens, tokenizer, bytes a token.
    text: how its texts were read, for JSON, see `of_jax.data.text.record`; None of tokens.
  """

  train: Tokens
  validation: Tokens
  vocab_size: int
  end_token: int | None
  begin_token: int | None
  corpus_sha256: str
  tokenizer_sha256: str
  tokenizer_path: Path | None
  description: str
  text: Mapping[str, Any] | None = None


class Described(Protocol):
  """Facts that a run records about its corpus, whether of tokens or of images."""

  @property
  def corpus_sha256(self) -> str:
    """Hash of the content, in hexadecimal."""

  @property
  def tokenizer_sha256(self) -> str:
    """Hash of tokenizer.json in hexadecimal, or ""."""

  @property
  def tokenizer_path(self) -> Path | None:
    """Path of tokenizer.json, or None."""

  @property
  def description(self) -> str:
    """Name, sizes and tokenizer in one line."""

  @property
  def text(self) -> Mapping[str, Any] | None:
    """How its texts were read; None where it came as tokens or images."""


class Damaged(Exception):
  """Raised for a folder that is not what its meta.json says; the message is why, in a few words."""


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
  """Writes meta.json; it comes last, so a folder with one is complete."""
  meta = {"format_version": FORMAT_VERSION, **meta}
  (folder / META).write_text(json.dumps({**meta, "meta_sha256": _hash(meta)}, indent=2) + "\n")


def read_meta(folder: Path) -> dict[str, Any]:
  """Reads meta.json.

  Raises:
    Damaged: there is none, or it was not written by `write_meta` of this format.
  """
  try:
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    expected = meta.pop("meta_sha256")
  except FileNotFoundError:
    raise Damaged(f"it has no {META}") from None
  except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
    raise Damaged(f"{META} cannot be read") from None
  if meta.get("format_version") != FORMAT_VERSION:
    raise Damaged(f"its format is {meta.get('format_version')}, not {FORMAT_VERSION}")
  if _hash(meta) != expected:
    raise Damaged(f"{META} was changed")
  return dict(meta)


def open_folder(folder: Path) -> Corpus:
  """Opens the corpus in `folder`, once every file's hash was compared with meta.json.

  Raises:
    Damaged: a file is missing, truncated or changed.
  """
  meta = read_meta(folder)
  _check_hash(folder / TOKENIZER, meta["tokenizer_sha256"])
  arrays = {}
  for part in PARTS:
    path = folder / f"{part}.bin"
    expected_bytes = meta[part]["tokens"] * np.dtype(meta["dtype"]).itemsize
    if not path.is_file() or path.stat().st_size != expected_bytes:
      raise Damaged(f"{path.name} is {'truncated' if path.is_file() else 'missing'}")
    _check_hash(path, meta[part]["sha256"])
    arrays[part] = np.memmap(path, meta["dtype"], "r")
  return Corpus(
      **arrays, vocab_size=meta["vocab_size"], end_token=meta["end_token"],
      begin_token=meta["begin_token"], corpus_sha256=meta["corpus_sha256"],
      tokenizer_sha256=meta["tokenizer_sha256"], tokenizer_path=folder / TOKENIZER,
      description=describe(meta), text=meta.get("text"))


def describe(meta: Mapping[str, Any]) -> str:
  """Describes a corpus by its meta.json in one line; the bytes a token are those of train."""
  train, validation = meta["train"], meta["validation"]
  return (f"{meta['corpus']}: {train['documents'] + validation['documents']:,} documents, "
          f"{train['tokens']:,} train and {validation['tokens']:,} validation tokens, "
          f"{meta['tokenizer']} of {meta['vocab_size']:,} tokens "
          f"({meta['tokenizer_sha256'][:8]}), {train['bytes'] / train['tokens']:.2f} bytes a token")


def file_sha256(path: Path) -> str:
  """Hashes a file with SHA-256; returns it in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(path: Path, expected: str) -> None:
  try:
    actual = file_sha256(path)
  except FileNotFoundError:
    raise Damaged(f"{path.name} is missing") from None
  if actual != expected:
    raise Damaged(f"{path.name} does not have the sha256 in {META}")


def _hash(meta: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
