"""A model that was not trained here, to be measured as a checkpoint is. Enters: a path that
of_jax.interop reads. Leaves: what of_jax.analysis.replay gives of a run.
"""

import dataclasses
from pathlib import Path

import jax

from of_jax import interop
from of_jax.analysis.evaluation import Batch, Replayed
from of_jax.analysis.replay import Log, Restored
from of_jax.config import DataConfig
from of_jax.config.paths import expanded
from of_jax.data.special_tokens import SpecialTokens
from of_jax.errors import UserError, refusing
from of_jax.interop.pretrained import assemble
from of_jax.storage.digest import as_text, digest


@dataclasses.dataclass(frozen=True)
class Imported(Restored):
  """Foreign weights; `step` is 0 and `is_verified` false, since no file vouches for them.

  Attributes:
    kind: format and family.
    tokenizer_path: of its tokenizer.json, None where it came with none.
    notes: what a user should know of how its files were read.
  """

  kind: str
  tokenizer_path: Path | None
  notes: tuple[str, ...] = ()

  @property
  def special(self) -> SpecialTokens:
    """The tokens that begin and end a text, as the model's files say."""
    data = self.config.data
    return SpecialTokens(data.end_token_id, data.begin_token_id, data.begin_token)

  @property
  def tokenizer(self) -> Path | None:
    """The model's tokenizer.json; None where it came with none."""
    return self.tokenizer_path

  def batches(self, split: str = "validation", count: int | None = None,
              log: Log = lambda line: None) -> list[Batch]:
    """Refuses with UserError: there is no corpus; of_jax.analysis.replay makes batches of text."""
    raise UserError(f"{self.path}: came without a corpus")

  def training_batch(self, log: Log = lambda line: None) -> list[Replayed]:
    """Refuses with UserError, as `batches` does."""
    raise UserError(f"{self.path}: came without a corpus")


def load(path: str | Path, begin_token: str = "auto", weights: str | None = None,
         log: Log = lambda line: None) -> Imported:
  """Loads the model at `path` on the first device.

  Args:
    begin_token, weights: as of_jax.interop.load.
    log: is given what a user should know of how it was read, a line each.

  Raises:
    UserError: as of_jax.interop.load.
  """
  source = interop.open_source(path, weights)
  tokenizer = source.tokenizer_file(DataConfig.cache_dir)
  with refusing(source.where):
    model = assemble(source, begin_token)
  notes = (*source.notes, *source.family.settings.notes,
           *filter(None, (source.special.note,)))
  for note in notes:
    log(f"{path}: {note}")
  params = jax.device_put(model.params, jax.devices()[0])
  return Imported(expanded(path), model.config, params, 0, as_text(digest(params, 0)),
                  False, source.kind, tokenizer, notes)
