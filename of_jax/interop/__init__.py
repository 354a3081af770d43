"""Readers of models trained elsewhere, which become ordinary models of this package.

`load` and `open_source` detect the format: a folder with safetensors as Hugging Face's libraries or
the released outlier-feature code write it, or a GGUF file. Nothing in a file is ever run.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from of_jax.config.paths import check_file, expanded
from of_jax.errors import UserError, refusing

if TYPE_CHECKING:  # It imports jax; what is wrong with a file is reported before that.
  from of_jax.interop.pretrained import Pretrained
  from of_jax.interop.source import Source

__all__ = ["load", "open_source"]


def load(path: str | Path, begin_token: str = "auto", weights: str | None = None
         ) -> "Pretrained":
  """Loads the model at `path`, its parameters in float32.

  Args:
    path: a folder with config.json and model.safetensors (or shards and their index), or a .gguf
      file.
    begin_token: whether texts begin with the begin token: auto, as the model's tokenizer does,
      yes or no.
    weights: of a folder with two sets of weights that differ, `single` for model.safetensors or
      `sharded` for the shards of the index; None where there is one.

  Raises:
    UserError: nothing there that can be read, or a model that cannot be expressed exactly.
  """
  source = open_source(path, weights)
  from of_jax.interop.pretrained import assemble
  with refusing(source.where):
    return assemble(source, begin_token)


def open_source(path: str | Path, weights: str | None = None) -> "Source":
  """Opens the model at `path` without reading its numbers or importing jax; else as `load`."""
  path = expanded(path)
  with refusing(str(path)):
    return _open(path, weights)


def _open(path: Path, weights: str | None) -> "Source":
  """Opens what is at a path."""
  if path.is_dir():
    if not (path / "config.json").exists():
      files = sorted(path.glob("*.gguf"))
      more = f", or another of the {len(files)} .gguf files there" if len(files) > 1 else ""
      raise UserError(f"{path}: has no config.json"
                      + (f"; give the file {files[0]} itself{more}" if files else ""))
    if (path / "metrics.jsonl").exists():
      raise UserError(f"{path}: a run directory of of_jax, not a foreign model")
    from of_jax.interop.folder import open_folder
    return open_folder(path, weights)
  if not path.exists():
    raise UserError(f"{path}: no such file or folder" + _not_fetched(path))
  if path.suffix != ".gguf":
    raise UserError(f"{path}: neither a folder with config.json and model.safetensors nor a .gguf "
                    "file")
  check_file(str(path), path)
  if weights is not None:
    raise UserError(f"{path}: --weights={weights} chooses among the files of a folder")
  from of_jax.interop.gguf import open_gguf
  return open_gguf(path)


def _not_fetched(path: Path) -> str:
  """Says what to do about what looks like a model's name on a hub, OWNER/NAME."""
  if path.is_absolute() or len(path.parts) != 2 or path.parent.exists() or path.suffix == ".gguf":
    return ""
  return ("; if it is a name on a hub: nothing is fetched from there, so download the folder "
          "(config.json, model.safetensors, tokenizer.json) by that hub's own tool and give its "
          "path")
