"""Special tokens of a tokenizer: which begin and end a text, and whether the tokenizer adds them.

Enters: the content of a tokenizer.json, and the files that Hugging Face's libraries leave beside
one. Leaves: ids.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from of_jax.errors import UserError, refusing

END, BEGIN = "<|endoftext|>", "<|begin|>"
# What the two are often called, for a tokenizer.json by itself that does not say.
END_NAMES = (END, "<|end_of_text|>", "<eos>", "</s>")
_BEGIN_NAMES = (BEGIN, "<|begin_of_text|>", "<bos>", "<s>")
# Files beside a tokenizer.json: the tokenizer's name tokens, the model's give ids.
_OF_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")
_OF_MODEL = ("config.json", "generation_config.json")
# Whether windows are begun: as the tokenizer does, or a run did; in any case; in none.
CHOICES = ("auto", "yes", "no")
_LARGEST_FILE = 10_000_000

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """Ids of a tokenizer's special tokens.

  Attributes:
    end: ends a text; None where nothing names one.
    begin: begins a text, likewise.
    begins: whether the tokenizer puts `begin` in front of a text by itself.
    note: what a user should know of files that do not agree, or "".
  """

  end: int | None
  begin: int | None
  begins: bool = False
  note: str = ""

  def within(self, vocab_size: int) -> "SpecialTokens":
    """Leaves out ids that a model of so many tokens has no embedding for."""
    end, begin = (None if one is None or one >= vocab_size else one
                  for one in (self.end, self.begin))
    return dataclasses.replace(self, end=end, begin=begin, begins=self.begins and begin is not None)


def of_folder(folder: Path) -> SpecialTokens:
  """Finds the special tokens of a model's folder, with or without a tokenizer.json.

  Raises:
    UserError: a file that is not what its name says.
  """
  path = folder / "tokenizer.json"
  if not path.is_file():
    numbers = [_read(folder, name) for name in _OF_MODEL]
    end, begin = (next((i for one in numbers if (i := _id(one.get(key))) is not None), None)
                  for key in ("eos_token_id", "bos_token_id"))
    return SpecialTokens(end, begin)
  with refusing(str(path), "not a tokenizer.json of the tokenizers library"):
    fields = json.loads(path.read_text(encoding="utf-8"))
    return of_tokenizer(fields, vocabulary(fields), folder)


def decide(choice: str, default: bool, special: SpecialTokens, where: str) -> bool:
  """Decides whether windows begin with the begin token.

  Args:
    choice: one of CHOICES.
    default: what auto means.
    where: whose special tokens these are, for messages.

  Raises:
    UserError: yes, where no begin token is known, or another choice.
  """
  if choice not in CHOICES:
    raise UserError(f"begin_token={choice}: not one of {', '.join(CHOICES)}")
  begins = default if choice == "auto" else choice == "yes"
  if begins and special.begin is None:
    raise UserError(f"begin_token={choice}: no begin token is known of {where}: neither a "
                    "tokenizer nor a config names one that its vocabulary has")
  return begins


def of_tokenizer(fields: Fields, ids: Mapping[str, int], folder: Path | None) -> SpecialTokens:
  """Finds the special tokens of a tokenizer, as its authors' files say them.

  Looked for in this order: what the post-processor of tokenizer.json puts in front of a text and
  behind it; what tokenizer_config.json and special_tokens_map.json call bos_token and eos_token;
  bos_token_id and eos_token_id of config.json and generation_config.json; names that are common.
  Whether a text is begun, the post-processor alone decides, as in transformers.

  Args:
    fields: the content of tokenizer.json.
    ids: of every token, added ones too.
    folder: where the other files are, if there are any.
  """
  names, numbers = ([_read(folder, name) for name in files] for files in (_OF_TOKENIZER, _OF_MODEL))
  before, behind = _added(fields.get("post_processor"))
  known = set(ids.values())

  def first(side: str, added: int | None, usual: tuple[str, ...]) -> int | None:
    candidates = [added, *(ids.get(_name(one.get(f"{side}_token"))) for one in names),
                  *(_id(one.get(f"{side}_token_id")) for one in numbers),
                  *(ids.get(name) for name in usual)]
    return next((one for one in candidates if one is not None and one in known), None)

  end, begin = first("eos", behind, END_NAMES), first("bos", before, _BEGIN_NAMES)
  asked = next((one["add_bos_token"] for one in names if "add_bos_token" in one), None)
  note = ""
  if asked in (True, False) and asked is not (before is not None):
    note = (f"tokenizer_config.json has add_bos_token={str(asked).lower()}, but the post-processor "
            f"of tokenizer.json adds {'none' if asked else 'a begin token'}, and transformers goes "
            "by that")
  return SpecialTokens(end, begin, before is not None and before in known, note)


def vocabulary(fields: Fields) -> dict[str, int]:
  """Reads the id of every token of a tokenizer.json, added ones too."""
  listed = fields["model"]["vocab"]
  # Unigram's is a list of [token, score].
  ids = (dict(listed) if isinstance(listed, Mapping)
         else {token: i for i, (token, _) in enumerate(listed)})
  found = {**ids, **{token["content"]: token["id"] for token in fields.get("added_tokens", ())}}
  for token, number in found.items():
    if not isinstance(token, str) or type(number) is not int or not 0 <= number < 1 << 31:
      raise ValueError(f"{str(number)[:40]} is no id of a token")
  return found


def _added(processor: Any) -> tuple[int | None, int | None]:
  """Ids of what a post-processor puts first and last around a single text."""
  before: list[int] = []
  behind: list[int] = []
  for one in _flat(processor):
    if one.get("type") in ("BertProcessing", "RobertaProcessing"):
      before.insert(0, int(one["cls"][1]))
      behind.append(int(one["sep"][1]))
    elif one.get("type") == "TemplateProcessing":
      own: tuple[list[int], list[int]] = ([], [])
      is_behind = False
      for piece in one["single"]:
        is_behind = is_behind or "Sequence" in piece
        if "SpecialToken" in piece:
          own[is_behind].extend(one["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
      before, behind = own[0] + before, behind + own[1]
  return next(iter(before), None), next(reversed(behind), None)


def _flat(processor: Any) -> Iterator[Fields]:
  if isinstance(processor, Mapping):
    if processor.get("type") == "Sequence":
      for one in processor["processors"]:
        yield from _flat(one)
    else:
      yield processor


def _name(token: Any) -> str:
  """The text of a token as tokenizer_config.json has it: a string, or an object with one."""
  text = token.get("content") if isinstance(token, Mapping) else token
  return text if isinstance(text, str) else ""


def _id(value: Any) -> int | None:
  """An id; of a list the first, as of models that may end in several ways."""
  one = value[0] if isinstance(value, list) and value else value
  return one if type(one) is int and one >= 0 else None


def _read(folder: Path | None, name: str) -> Fields:
  path = None if folder is None else folder / name
  if path is None or not path.is_file():
    return {}
  try:
    if path.stat().st_size > _LARGEST_FILE:
      return {}
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    raise UserError(f"{path}: not JSON") from None
  return found if isinstance(found, Mapping) else {}
