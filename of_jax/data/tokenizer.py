"""Tokenizers: a byte-level BPE trained on the corpus, or a user's tokenizer.json.

Enters: texts or a file. Leaves: the JSON that says everything, and an `Encoder` made from it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from of_jax.config import DataConfig
from of_jax.config.paths import check_file, expanded
from of_jax.data import special_tokens
from of_jax.data.special_tokens import BEGIN, END, SpecialTokens
from of_jax.errors import UserError, refusing

# The largest of models with a quarter of a million tokens has a third of it.
LARGEST = 100_000_000


def train(texts: Iterable[str], vocab_size: int) -> str:
  """Trains a byte-level BPE with `<|endoftext|>` = 0 and `<|begin|>` = 1; returns tokenizer.json.

  Equal texts in equal order give equal JSON. There are at most `vocab_size` tokens, fewer where
  the texts have no more pairs that occur twice.
  """
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=[END, BEGIN],
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
  tokenizer.train_from_iterator(texts, trainer)
  return str(tokenizer.to_str(pretty=True))


def load(data: DataConfig) -> "Encoder":
  """Reads the tokenizer.json that `data.tokenizer` names and checks that it fits the vocabulary.

  Special tokens are those of `data.end_token_id` and `data.begin_token_id` where they are set.

  Raises:
    UserError: no such file, not a tokenizer, or too many tokens.
  """
  where = f"config.data.tokenizer={data.tokenizer}"
  encoder = read(expanded(data.tokenizer, where), where, data.end_token_id, data.begin_token_id)
  if encoder.vocab_size > data.vocab_size:
    raise UserError(f"{where}: has {encoder.vocab_size} tokens, more than config.data.vocab_size="
                    f"{data.vocab_size}; set data.vocab_size to at least that")
  return encoder


def read(path: Path, where: str, end: int | None = None, begin: int | None = None) -> "Encoder":
  """Reads a tokenizer.json, with the special tokens that it and the files beside it name.

  Args:
    where: for messages.
    end, begin: ids of special tokens that are known better.

  Raises:
    UserError: no such file, or not a tokenizer.
  """
  return Encoder(read_text(path, where), where, path.parent, end, begin)


def read_text(path: Path, where: str) -> str:
  """Reads the content of a tokenizer.json.

  Raises:
    UserError: no such file, or one that is too large or no text.
  """
  try:
    if check_file(where, path).stat().st_size > LARGEST:
      raise UserError(f"{where}: has more than {LARGEST:,} bytes")
    return path.read_text(encoding="utf-8")
  except UserError as error:
    raise UserError(f"{error}; give the path of a tokenizer.json") from None
  except (OSError, UnicodeDecodeError):
    raise UserError(f"{where}: cannot be read; give the path of a tokenizer.json") from None


@contextlib.contextmanager
def quiet_panics() -> Iterator[None]:
  """Keeps what a library in Rust writes to stderr of its own faults from the user's terminal.

  Nothing else is written in the block, which is short.
  """
  kept = os.dup(2)
  sink = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(sink, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(sink)


class Encoder:
  """Encoder of texts as tokens, made from the content of a tokenizer.json.

  A text is only text: where it spells `<|endoftext|>`, it gets the tokens of these thirteen
  characters and not the end token, or any file could forge the border between documents.

  Attributes:
    json: the tokenizer.json.
    vocab_size: the largest id plus one.
    dtype: type of the tokens, the smallest that holds them, as NumPy spells it.
    special: its special tokens.
  """

  def __init__(self, tokenizer_json: str, where: str = "tokenizer.json", folder: Path | None = None,
               end: int | None = None, begin: int | None = None):
    """Makes the encoder.

    Args:
      tokenizer_json: the content of the file.
      where: for messages.
      folder: of other files that name special tokens, see special_tokens.of_tokenizer.
      end, begin: ids of special tokens that are known better.
    """
    from tokenizers import Tokenizer
    with refusing(where, "not a tokenizer.json of the tokenizers library"), quiet_panics():
      Tokenizer.from_str(tokenizer_json)
      fields = json.loads(tokenizer_json)
      vocabulary = special_tokens.vocabulary(fields)
      found = special_tokens.of_tokenizer(fields, vocabulary, folder)
      self.special = SpecialTokens(
          found.end if end is None else end, found.begin if begin is None else begin, found.begins,
          found.note)
      # Only tokens that are marked special can be kept out of the text, so these two must be.
      for token in fields["added_tokens"]:
        token["special"] = token["special"] or token["id"] in (self.special.end, self.special.begin)
      self._tokenizer = Tokenizer.from_str(json.dumps(fields))
      self.vocab_size = max(vocabulary.values()) + 1
    self._tokenizer.encode_special_tokens = True
    # A saved tokenizer may carry a model's own limits, which would silently cut documents.
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._where = where
    self.json = tokenizer_json
    # Little-endian on every machine, as meta.json says it.
    self.dtype = "<u2" if self.vocab_size <= 1 << 16 else "<u4"

  @property
  def end_token(self) -> int:
    """The id of the token that ends a document.

    Raises:
      UserError: the tokenizer has none.
    """
    if self.special.end is None:
      raise UserError(f"{self._where}: has no end-of-text token: neither it nor a file beside it "
                      f"names one, nor is one of {', '.join(special_tokens.END_NAMES)} in its "
                      "vocabulary; set config.data.end_token_id")
    return self.special.end

  @property
  def begin_token(self) -> int | None:
    """The id of the token that begins a text; None where the tokenizer has none."""
    return self.special.begin

  def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
    """Encodes each text as tokens [tokens], without end or begin tokens.

    Raises:
      UserError: the tokenizer encodes some text as its own end token.
    """
    with refusing(self._where, "cannot encode a text"):
      encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    rows: list[npt.NDArray[np.integer]] = [np.asarray(e.ids, self.dtype) for e in encodings]
    if any((row == self.special.end).any() for row in rows):
      raise UserError(f"{self._where}: encodes some text as its own end-of-text token "
                      f"{self.special.end}, which would end documents in their middle")
    return rows


def sha256(tokenizer_json: str) -> str:
  """Hashes a tokenizer.json for a run to name its tokenizer by; returns it in hexadecimal."""
  return hashlib.sha256(tokenizer_json.encode("utf-8")).hexdigest()
