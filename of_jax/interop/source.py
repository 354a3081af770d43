"""Source of a foreign model: its files are open, its numbers have not been read.

Nothing here imports jax, so that a config can be made of it on the command line.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from of_jax.config import Config, DataConfig, ModelConfig, TrainConfig, resolve
from of_jax.errors import UserError
from of_jax.interop.families import Family
from of_jax.interop.tensors import Tensors
from of_jax.storage.run_directory import replace_text

if TYPE_CHECKING:
  from tokenizers import Tokenizer

# An imported model has no corpus: a run that goes on with it names its own.
_NO_CORPUS = "tokens:none.npy"
TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Source:
  """Facts of a foreign model before its numbers are read.

  Attributes:
    where: the folder or file.
    kind: format and family.
    tokenizer: of the `tokenizers` library, None where the model came with none.
    notes: what a user should know.
  """

  family: Family
  tensors: Tensors
  where: str
  kind: str
  tokenizer: "Tokenizer | None"
  notes: tuple[str, ...] = ()

  def config(self) -> Config:
    """Makes the resolved config; `train.sequence_length` is the longest that the model can read.

    Raises:
      UserError: a model that cannot be expressed.
    """
    fields = self.family.model_fields(self.tensors)
    try:
      return resolve(Config(
          model=ModelConfig(**fields),
          train=TrainConfig(sequence_length=self.family.positions(self.tensors)),
          data=DataConfig(corpus=_NO_CORPUS, vocab_size=self.family.vocab_size())))
    except UserError as error:
      raise UserError(f"{self.where}: cannot be expressed: {error}") from None

  def tokenizer_file(self, cache_dir: str) -> Path | None:
    """Path of a tokenizer.json: the folder's own, or one written into the cache by its hash."""
    own = Path(self.where) / TOKENIZER
    if self.tokenizer is None or own.is_file():
      return None if self.tokenizer is None else own
    text = str(self.tokenizer.to_str())
    name = hashlib.sha256(text.encode("utf-8")).hexdigest()
    path = Path(cache_dir).expanduser() / "tokenizers" / f"{name}.json"
    if not path.is_file():
      path.parent.mkdir(parents=True, exist_ok=True)
      replace_text(path, text)
    return path
