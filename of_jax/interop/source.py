"""Source of a foreign model: its files are open, its numbers have not been read.

Nothing here imports jax, so that a config can be made of it on the command line.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from of_jax.config import Config, DataConfig, ModelConfig, TrainConfig, resolve
from of_jax.config.paths import expanded
from of_jax.data import special_tokens
from of_jax.data.special_tokens import SpecialTokens
from of_jax.errors import UserError, refusing
from of_jax.interop.families import Family
from of_jax.interop.tensors import Tensors
from of_jax.storage.run_directory import replace_text

if TYPE_CHECKING:
  from tokenizers import Tokenizer

# An imported model has no corpus: a run that goes on with it names its own.
NO_CORPUS = "tokens:none.npy"
TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Source:
  """Facts of a foreign model before its numbers are read.

  Attributes:
    where: the folder or file.
    kind: format and family.
    tokenizer: of the `tokenizers` library, None where the model came with none.
    notes: what a user should know.
    special: tokens that begin and end a text; ids that the embedding lacks are none.
    unread: names of metadata beside the family's own config that nobody has asked for.
  """

  family: Family
  tensors: Tensors
  where: str
  kind: str
  tokenizer: "Tokenizer | None"
  notes: tuple[str, ...] = ()
  special: SpecialTokens = SpecialTokens(None, None)
  unread: tuple[str, ...] = ()

  def config(self, begin_token: str = "auto") -> Config:
    """Makes the resolved config; `train.sequence_length` is the longest that the model can read.

    Args:
      begin_token: whether windows begin with the begin token, `data.begin_token`: auto, as the
        tokenizer does, yes or no.

    Raises:
      UserError: a model that cannot be expressed, or one whose begin token is not known.
    """
    with refusing(self.where):
      return self._config(begin_token)

  def _config(self, begin_token: str) -> Config:
    """Makes it, with whatever the family's code raises of fields that nobody foresaw."""
    fields, vocab_size = self.family.model_fields(self.tensors), self.family.vocab_size()
    self.family.settings.finish()
    special = self.special.within(vocab_size)
    begins = special_tokens.decide(begin_token, special.begins, special, self.where)
    try:
      return resolve(Config(
          model=ModelConfig(**fields),
          train=TrainConfig(sequence_length=self.family.positions(self.tensors)),
          data=DataConfig(corpus=NO_CORPUS, vocab_size=vocab_size, begin_token=begins,
                          begin_token_id=special.begin, end_token_id=special.end)))
    except UserError as error:
      raise UserError(f"{self.where}: cannot be expressed: {error}") from None

  def special_notes(self) -> list[str]:
    """Says in a line or two which token begins a text, where one is known."""
    begin = self.special.begin
    if begin is None:
      return []
    token = None if self.tokenizer is None else self.tokenizer.id_to_token(begin)
    name = f"token {begin}" if token is None else f"{token} ({begin})"
    return [f"its tokenizer begins a text with {name}" if self.special.begins else
            f"its begin token is {name}, which its tokenizer does not add",
            *([self.special.note] if self.special.note else [])]

  def tokenizer_file(self, cache_dir: str) -> Path | None:
    """Path of a tokenizer.json: the folder's own, or one written into the cache by its hash, beside
    the names of its special tokens."""
    own = Path(self.where) / TOKENIZER
    if self.tokenizer is None or own.is_file():
      return None if self.tokenizer is None else own
    text = str(self.tokenizer.to_str())
    names = {"bos_token": self.special.begin, "eos_token": self.special.end}
    beside = json.dumps({key: self.tokenizer.id_to_token(i) for key, i in names.items()
                         if i is not None})
    name = hashlib.sha256((text + beside).encode("utf-8")).hexdigest()
    path = expanded(cache_dir) / "tokenizers" / name / TOKENIZER
    if not path.is_file():
      path.parent.mkdir(parents=True, exist_ok=True)
      replace_text(path.with_name("tokenizer_config.json"), beside)
      replace_text(path, text)
    return path
