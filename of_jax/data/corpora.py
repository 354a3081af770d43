"""Opening of corpora: from the config's `data` section to memory-mapped tokens or images.

Enters: a DataConfig. Leaves: a `Corpus`, out of the cache or tokenised into it, or an `Images`.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.config import DataConfig, own_code
from of_jax.config.paths import expanded
from of_jax.data import (
    cache,
    files,
    folder,
    images,
    own_documents,
    pypi_code,
    text,
    tfds_text,
    tokenizer,
    tokens,
)
from of_jax.data.documents import Document, Source, encode_name, pieces, sample
from of_jax.data.folder import Corpus
from of_jax.data.images import Images
from of_jax.errors import UserError

__all__ = ["Corpus", "Images", "prepare"]

# The tokenizer learns from at most this much of train, which for code is past the point where
# its merges still change, and keeps the trainer's memory below about 2 GB.
TOKENIZER_BYTES = 40_000_000
_BATCH_CHARACTERS = 4_000_000
_SECONDS_BETWEEN_LINES = 10.0

Log = Callable[[str], None]


def prepare(data: DataConfig, log: Log = print) -> Corpus | Images:
  """Opens the corpus that `data` names, downloading or building it first if it is not there.

  Args:
    data: the `data` section of a resolved config.
    log: is given progress lines, none where the corpus is in the cache, and a line on what is
      unusual in its texts.

  Returns:
    Memory-mapped token arrays, or whitened images where `data.input_size` is set.

  Raises:
    UserError: an unknown or unreadable corpus, a download that fails, a missing package, a cache
      that cannot be written, or too little data for `data.validation_fraction`.
  """
  if data.input_size is not None:
    return images.prepare(data, log)
  kind, _, rest = data.corpus.partition(":")
  if own_code.is_own(own_code.CORPUS, data.corpus):
    kind = "own"
  if kind == "tokens":
    return tokens.open_tokens(data, log)
  if importlib.util.find_spec("tokenizers") is None:
    raise UserError(f"config.data.corpus={data.corpus}: the package tokenizers is not installed; "
                    "run pip install tokenizers")
  given = tokenizer.load(data) if data.tokenizer else None
  source = _source(kind, rest, data, log)
  key = {
      "corpus": source.fingerprint,
      "kind": kind,
      "tokenizer": data.vocab_size if given is None else tokenizer.sha256(given.json),
      "validation_fraction": data.validation_fraction,
      "tokenizers": importlib.metadata.version("tokenizers"),
      **_special_tokens(given),
  }
  corpus = cache.open_or_build(
      data.cache_dir, f"{kind}-{data.vocab_size if given is None else 'given'}", key,
      lambda entry: _build(entry, source, given, data, log), log, folder.open_folder)
  # A cache of an earlier version did not count what is unusual, and read the texts as is done now.
  counted = corpus.text or {"policy": text.POLICY, "unusual": None}
  said = text.describe_unusual(counted["unusual"] or {})
  if said:
    log(f"{source.name}: kept as they are: {said}")
  return dataclasses.replace(corpus, text={**counted, **source.record})


def _special_tokens(given: tokenizer.Encoder | None) -> dict[str, object]:
  """Special tokens of a given tokenizer, where tokenizer.json by itself would have others."""
  if given is None:
    return {}
  end, begin = given.end_token, given.begin_token
  by_itself = tokenizer.Encoder(given.json).special
  return {} if (by_itself.end, by_itself.begin) == (end, begin) else {
      "special_tokens": [end, begin]}


def _source(kind: str, rest: str, data: DataConfig, log: Log) -> Source:
  if own_code.is_own(own_code.CORPUS, data.corpus):
    return own_documents.source(data.corpus)
  if kind == "python_stdlib":
    return files.python_stdlib()
  if kind == "pypi_code":
    return pypi_code.source(data.cache_dir, log)
  if kind == "text":
    return files.text(rest, log, data.text_field, expanded(data.cache_dir))
  if kind == "tfds":
    return tfds_text.source(rest, data.text_field)
  raise UserError(f"config.data.corpus={data.corpus}: not python_stdlib, pypi_code, text:PATH, "
                  "tfds:NAME, tokens:PATH or FILE.py:NAME")


def _build(entry: Path, source: Source, given: tokenizer.Encoder | None, data: DataConfig,
           log: Log) -> None:
  """Writes the token folder of `source` into the empty folder `entry`."""
  split = source.split(data.validation_fraction)
  if given is None:
    log(f"{source.name}: training a byte-level BPE of {data.vocab_size:,} tokens")
    given = tokenizer.Encoder(
        tokenizer.train(sample(split.train, TOKENIZER_BYTES), data.vocab_size))
  (entry / folder.TOKENIZER).write_text(given.json, encoding="utf-8", newline="")
  content, unusual = hashlib.sha256(), Counter[str]()
  meta: dict[str, Any] = {
      "corpus": source.name, "split": split.rule,
      "validation_fraction": data.validation_fraction,
      "vocab_size": given.vocab_size, "end_token": given.end_token,
      "begin_token": given.begin_token, "dtype": given.dtype,
      "tokenizer": "given tokenizer" if data.tokenizer else "own byte-level BPE",
      "tokenizer_sha256": tokenizer.sha256(given.json),
      "tokenizers_version": importlib.metadata.version("tokenizers"),
  }
  for part, documents in (("train", split.train), ("validation", split.validation)):
    content.update(f"{part}\n".encode())
    meta[part] = _write_tokens(entry / f"{part}.bin", documents, given, content, unusual, log)
    if not meta[part]["tokens"]:
      raise UserError(f"config.data.corpus={source.name}: its {part} documents hold no text")
  meta["corpus_sha256"] = content.hexdigest()
  meta["text"] = {"policy": text.POLICY, "unusual": dict(unusual)}
  folder.write_meta(entry, meta)


def _write_tokens(path: Path, documents: Sequence[Document], encoder: tokenizer.Encoder,
                  content: Any, unusual: Counter[str], log: Log) -> dict[str, Any]:
  """Writes every document's tokens and its end token; returns the part's row of meta.json."""
  row = {"documents": 0, "bytes": 0, "tokens": 0}
  digest = hashlib.sha256()
  end = np.array([encoder.end_token], encoder.dtype)
  next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
  with path.open("wb") as file:
    for batch in _batches(documents, content, unusual, row):
      rows = encoder.encode([part for part, _ in batch])
      for (_, is_end), tokens_N in zip(batch, rows, strict=True):
        for array in (tokens_N, end) if is_end else (tokens_N,):
          file.write(array.tobytes())
          digest.update(array.tobytes())
          row["tokens"] += len(array)
      if time.monotonic() > next_line:
        log(f"{path.stem}: tokenised {row['documents']:,} of {len(documents):,} documents")
        next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
  return {**row, "sha256": digest.hexdigest()}


def _batches(documents: Sequence[Document], content: Any, unusual: Counter[str],
             row: dict[str, int]) -> Iterator[list[tuple[str, bool]]]:
  """Yields lists of (piece of text, is it its document's last) that keep all cores busy.

  Adds every document to the hash `content` and to the counts in `unusual` and `row`.
  """
  batch, characters = [], 0
  for document in documents:
    read = document.read()
    unusual.update(text.count_unusual(read))
    raw = read.encode("utf-8")
    content.update(encode_name(document.name) + b"\0" + hashlib.sha256(raw).digest())
    row["documents"] += 1
    row["bytes"] += len(raw)
    parts = list(pieces(read))
    for i, part in enumerate(parts):
      batch.append((part, i == len(parts) - 1))
      characters += len(part)
      if characters >= _BATCH_CHARACTERS:
        yield batch
        batch, characters = [], 0
  yield batch
