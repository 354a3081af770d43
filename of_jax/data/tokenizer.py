"""Tokenizers: a byte-level BPE trained on the corpus, or a user's tokenizer.json.

Enters: texts or a file. Leaves: the JSON that says everything, and an `Encoder` made from it.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from of_jax.errors import UserError

END, BEGIN = "<|endoftext|>", "<|begin|>"
# What users' tokenizers call the two, in the order in which they are looked for.
_END_NAMES = (END, "<|end_of_text|>", "<eos>", "</s>")
_BEGIN_NAMES = (BEGIN, "<|begin_of_text|>", "<bos>", "<s>")


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


def load(path_text: str, vocab_size: int) -> str:
  """Reads a user's tokenizer.json and checks that it fits the vocabulary.

  Raises:
    UserError: no such file, not a tokenizer, too many tokens, or no end-of-text token.
  """
  where = f"config.data.tokenizer={path_text}"
  path = Path(path_text).expanduser()
  try:
    text = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read"
    raise UserError(f"{where}: {reason}; give the path of a tokenizer.json") from None
  encoder = Encoder(text, where)
  if encoder.vocab_size > vocab_size:
    raise UserError(f"{where}: has {encoder.vocab_size} tokens, more than "
                    f"config.data.vocab_size={vocab_size}; set data.vocab_size to at least that")
  return text


class Encoder:
  """Encoder of texts as tokens, made from the content of a tokenizer.json.

  A text is only text: where it spells `<|endoftext|>`, it gets the tokens of these thirteen
  characters and not the end token, or any file could forge the border between documents.

  Attributes:
    vocab_size: the largest id plus one.
    dtype: type of the tokens, the smallest that holds them, as NumPy spells it.
    end_token, begin_token: their ids; begin_token is None where the tokenizer has none.
  """

  def __init__(self, tokenizer_json: str, where: str = "tokenizer.json"):
    from tokenizers import Tokenizer
    try:
      tokenizer = Tokenizer.from_str(tokenizer_json)
      vocabulary = tokenizer.get_vocab(with_added_tokens=True)
      end = next((name for name in _END_NAMES if name in vocabulary), None)
      begin = next((name for name in _BEGIN_NAMES if name in vocabulary), None)
      # Only tokens that are marked special can be kept out of the text, so these two must be.
      fields = json.loads(tokenizer_json)
      for token in fields["added_tokens"]:
        token["special"] = token["special"] or token["content"] in (end, begin)
      self._tokenizer = Tokenizer.from_str(json.dumps(fields))
    except Exception as error:  # The library raises bare Exception for whatever it cannot parse.
      reason = " ".join(str(error).split())[:100]
      raise UserError(
          f"{where}: not a tokenizer.json of the tokenizers library: {reason}") from None
    if end is None:
      raise UserError(f"{where}: has no end-of-text token; one of {', '.join(_END_NAMES)} must be "
                      "in its vocabulary")
    self._tokenizer.encode_special_tokens = True
    # A saved tokenizer may carry a model's own limits, which would silently cut documents.
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._where = where
    self.vocab_size = max(vocabulary.values()) + 1
    self.end_token: int = vocabulary[end]
    self.begin_token: int | None = None if begin is None else vocabulary[begin]
    # Little-endian on every machine, as meta.json says it.
    self.dtype = "<u2" if self.vocab_size <= 1 << 16 else "<u4"

  def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
    """Encodes each text as tokens [tokens], without end or begin tokens.

    Raises:
      UserError: the tokenizer encodes some text as its own end token.
    """
    encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    rows: list[npt.NDArray[np.integer]] = [np.asarray(e.ids, self.dtype) for e in encodings]
    if any((row == self.end_token).any() for row in rows):
      raise UserError(f"{self._where}: encodes some text as its own end-of-text token "
                      f"{self.end_token}, which would end documents in their middle")
    return rows


def sha256(tokenizer_json: str) -> str:
  """Hashes a tokenizer.json for a run to name its tokenizer by; returns it in hexadecimal."""
  return hashlib.sha256(tokenizer_json.encode("utf-8")).hexdigest()
