"""Folders with a config.json and safetensors, as Hugging Face's libraries write them."""

from pathlib import Path
from typing import TYPE_CHECKING

from of_jax import variants
from of_jax.data import special_tokens
from of_jax.errors import UserError
from of_jax.interop.families import Family
from of_jax.interop.safetensors import Entry, read_header
from of_jax.interop.settings import Settings, read_object
from of_jax.interop.source import TOKENIZER, Source
from of_jax.interop.tensors import Tensors

if TYPE_CHECKING:
  from tokenizers import Tokenizer

_FAMILIES = "interop/families"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Fields of training, generation and provenance. No code that a folder names is run.
_INERT = (r"(.*_)?(pdrop|dropout|layerdrop|token_id|init_std|initializer_range|dtype)|"
          r"architectures|auto_map|transformers_version|_name_or_path|use_cache|is_decoder|"
          r"is_encoder_decoder|gradient_checkpointing|cache_implementation|pretraining_tp|prefix|"
          r"task_specific_params|summary_.*|reorder_and_upcast_attn|_attn_implementation.*")
# Of the released OF code, which writes no model_type of its own.
_RELEASED = "simplified_transformers"


def open_folder(folder: Path) -> Source:
  """Opens the model of a folder. Code in it, if there is any, is not looked at.

  Raises:
    UserError: a family, a field or a file that cannot be read as it should.
  """
  settings = Settings.from_json(folder / "config.json")
  family = _family(settings)
  settings.refuse("quantization_config", what="weights that are stored quantised are not read")
  settings.set_aside(_INERT)
  tensors = Tensors(folder, _entries(folder), family.prefix)
  return Source(family, tensors, str(folder), f"{_kind(settings)} in safetensors",
                read_tokenizer(folder / TOKENIZER), special=special_tokens.of_folder(folder))


def _kind(settings: Settings) -> str:
  return str(settings.get("format", settings.get("model_type")))


def _family(settings: Settings) -> Family:
  known = variants.names(_FAMILIES)
  if settings.get("format") is not None:
    settings.choice("format", {_RELEASED: _RELEASED})
    settings.get("model_type")
  else:
    settings.choice("model_type", {name: name for name in known if name != _RELEASED})
  return variants.load_class(_FAMILIES, _kind(settings), Family)(settings)


def _entries(folder: Path) -> dict[str, Entry]:
  """Reads the entries of all shards."""
  if (folder / _INDEX).exists():
    return _sharded(folder)
  if (folder / _SINGLE).exists():
    return read_header(folder / _SINGLE)
  pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
                   for path in folder.glob(pattern))
  if pickles:
    raise UserError(f"{folder}: holds {pickles[0]}, a pickle, which could run code and is not "
                    f"opened; save the model as {_SINGLE}")
  raise UserError(f"{folder}: holds neither {_SINGLE} nor {_INDEX}")


def _sharded(folder: Path) -> dict[str, Entry]:
  index = folder / _INDEX
  places = read_object(index).get("weight_map")
  if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
    raise UserError(f"{index}: lacks weight_map, from names of tensors to names of files")
  entries: dict[str, Entry] = {}
  for file in sorted(set(places.values())):
    # A name and nothing else: no other folder, whatever the separator.
    if not file.endswith(".safetensors") or set(file) & set("/\\\0") or file.startswith("."):
      raise UserError(f"{index}: names the file {file[:60]!r}; it must be the plain name of a "
                      ".safetensors file of its own folder")
    found = read_header(folder / file)
    listed = {name for name, place in places.items() if place == file}
    for name in sorted(found.keys() ^ listed):
      verbs = ("holds", "does not list") if name in found else ("lacks", "lists")
      raise UserError(f"{folder / file}: {verbs[0]} the tensor {name}, which {_INDEX} {verbs[1]} "
                      "there")
    entries |= found
  return entries


def read_tokenizer(path: Path) -> "Tokenizer | None":
  """Reads the tokenizer of a tokenizer.json, which cuts and pads nothing; None without the file.

  Raises:
    UserError: not a tokenizer.
  """
  if not path.exists():
    return None
  from tokenizers import Tokenizer
  try:
    tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
  except Exception as error:  # The library raises bare Exception for whatever it cannot parse.
    reason = " ".join(str(error).split())[:100]
    raise UserError(f"{path}: not a tokenizer.json of the tokenizers library: {reason}") from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer
