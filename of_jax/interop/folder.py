"""Folders with a config.json and safetensors, as Hugging Face's libraries write them."""

from pathlib import Path
from typing import TYPE_CHECKING

from of_jax import variants
from of_jax.data import special_tokens
from of_jax.data.tokenizer import quiet_panics, read_text
from of_jax.errors import refusing
from of_jax.interop import weight_sets
from of_jax.interop.families import Family
from of_jax.interop.settings import Settings
from of_jax.interop.source import TOKENIZER, Source
from of_jax.interop.tensors import Tensors

if TYPE_CHECKING:
  from tokenizers import Tokenizer

_FAMILIES = "interop/families"
# Fields of training, generation and provenance. No code that a folder names is run.
_INERT = (r"(.*_)?(pdrop|dropout|layerdrop|token_id|init_std|initializer_range|dtype)|"
          r"architectures|auto_map|transformers_version|_name_or_path|use_cache|is_decoder|"
          r"is_encoder_decoder|gradient_checkpointing|cache_implementation|pretraining_tp|prefix|"
          r"task_specific_params|summary_.*|reorder_and_upcast_attn|_attn_implementation.*")
# Of the released OF code, which writes no model_type of its own.
_RELEASED = "simplified_transformers"


def open_folder(folder: Path, weights: str | None = None) -> Source:
  """Opens the model of a folder. Code in it, if there is any, is not looked at.

  Args:
    weights: which of two sets of weights, see of_jax.interop.weight_sets; None: the only one.

  Raises:
    UserError: a family, a field or a file that cannot be read as it should.
  """
  settings = Settings.from_json(folder / "config.json")
  family = _family(settings)
  settings.refuse("quantization_config", what="weights that are stored quantised are not read")
  settings.refuse("per_layer_config", what="of_jax gives all blocks the same config")
  settings.set_aside(_INERT)
  found = weight_sets.choose(folder, weights)
  if weights is None:
    settings.refuse("transformers_weights", found.file, what=f"of_jax reads {found.file}")
  return Source(family, Tensors(folder, found.entries, family.prefix), str(folder),
                f"{_kind(settings)} in safetensors", read_tokenizer(folder / TOKENIZER),
                found.notes, special_tokens.of_folder(folder))


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


def read_tokenizer(path: Path) -> "Tokenizer | None":
  """Reads the tokenizer of a tokenizer.json, which cuts and pads nothing; None without the file.

  Raises:
    UserError: not a tokenizer.
  """
  if not path.exists():
    return None
  from tokenizers import Tokenizer
  text = read_text(path, str(path))
  with refusing(str(path), "not a tokenizer.json of the tokenizers library"), quiet_panics():
    tokenizer = Tokenizer.from_str(text)
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer
