"""Special tokens as transformers finds them, for tests/data/test_special_tokens.py and
tests/fidelity/windows.py.

Writes special_tokens.json: of each folder that FOLDERS describes, the ids of begin and end token
and the ids of a text. It needs transformers 5.24 and no model:

  python tests/golden/special_tokens.py

`save` writes the folders, for these tests too, and needs nothing but the standard library.
"""

import json
import pathlib
import tempfile
from typing import Any

_LETTERS = [*"abc", "\u0120", *"<>/s[]Xdefnto"]


def template(before: dict[str, int], behind: dict[str, int]) -> dict[str, Any]:
  """Makes a post-processor that puts tokens around a text."""
  def piece(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}

  single = [*map(piece, before), {"Sequence": {"id": "A", "type_id": 0}}, *map(piece, behind)]
  return {"type": "TemplateProcessing", "single": single,
          "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
          "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}
                             for name, i in {**before, **behind}.items()}}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

# Name -> special tokens by name, the post-processor, and the other files' contents.
FOLDERS: dict[str, dict[str, Any]] = {
    # OPT: one token begins a text and ends it.
    "opt": {"special": {"</s>": 2, "<pad>": 1}, "processor": template({"</s>": 2}, {}),
            "tokenizer_config": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>",
                                 "add_bos_token": True},
            "config": {"model_type": "opt", "bos_token_id": 2, "eos_token_id": 2}},
    # GPT-2: one token ends a text and nothing is added.
    "gpt2": {"special": {"<|endoftext|>": 0}, "processor": BYTES,
             "tokenizer_config": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
             "config": {"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0}},
    # A template that adds both, behind another processor, under names of its own.
    "both": {"special": {"[START]": 4, "[STOP]": 1}, "processor": {
        "type": "Sequence", "processors": [BYTES, template({"[START]": 4}, {"[STOP]": 1})]},
        "tokenizer_config": {"bos_token": {"content": "[START]", "lstrip": False, "rstrip": False,
                                           "normalized": False, "single_word": False,
                                           "__type": "AddedToken"}, "eos_token": "[STOP]"},
        "config": {"model_type": "llama", "bos_token_id": 4, "eos_token_id": [1, 3]}},
    # RoBERTa's processor, and LLaMA's usual names for other ids.
    "roberta": {"special": {"<s>": 3, "</s>": 5}, "processor": {
        "type": "RobertaProcessing", "sep": ["</s>", 5], "cls": ["<s>", 3], "trim_offsets": True,
        "add_prefix_space": False},
        "tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"},
        "config": {"model_type": "llama", "bos_token_id": 3, "eos_token_id": 5}},
    # tokenizer_config.json asks for a begin token that tokenizer.json does not add.
    "asked": {"special": {"<s>": 1, "</s>": 2}, "processor": BYTES,
              "tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
              "config": {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}},
    # And the other way round.
    "refused": {"special": {"<s>": 1, "</s>": 2}, "processor": template({"<s>": 1}, {}),
                "tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>",
                                     "add_bos_token": False},
                "config": {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}},
    # Common names for tokens of another use: the files' own come first.
    "misleading": {"special": {"<s>": 0, "<|endoftext|>": 1, "<begin>": 2, "<finish>": 3},
                   "processor": None,
                   "tokenizer_config": {"bos_token": "<begin>", "eos_token": "<finish>",
                                        "pad_token": "<|endoftext|>", "unk_token": "<s>"},
                   "config": {"model_type": "llama", "bos_token_id": 2, "eos_token_id": 3}},
    # SentencePiece's kind of model: spaces as U+2581, and a begin token.
    "sentencepiece": {"special": {"<unk>": 0, "<bos>": 2, "<eos>": 1}, "space": "\u2581",
                      "processor": template({"<bos>": 2}, {}),
                      "tokenizer_config": {"bos_token": "<bos>", "eos_token": "<eos>",
                                           "unk_token": "<unk>"},
                      "config": {"model_type": "gemma2", "bos_token_id": 2, "eos_token_id": 1}},
}


def save(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Writes the files of one of FOLDERS, which hold no model."""
  one = FOLDERS[name]
  folder.mkdir(parents=True, exist_ok=True)
  taken = {i: token for token, i in one["special"].items()}
  free = (i for i in range(99) if i not in taken)
  space = one.get("space", "\u0120")
  letters = {space if letter == "\u0120" else letter: next(free) for letter in _LETTERS}
  cut = ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
         if "space" not in one else None)
  (folder / "tokenizer.json").write_text(json.dumps({
      "version": "1.0", "truncation": None, "padding": None,
      "added_tokens": [{"id": i, "content": token, "single_word": False, "lstrip": False,
                        "rstrip": False, "normalized": False, "special": True}
                       for i, token in sorted(taken.items())],
      "normalizer": None if cut else {"type": "Replace", "pattern": {"String": " "},
                                      "content": space},
      "pre_tokenizer": cut, "post_processor": one["processor"],
      "decoder": {**BYTES, "add_prefix_space": True} if cut else None,
      "model": {"type": "BPE", "dropout": None, "unk_token": None,
                "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                "byte_fallback": False, "ignore_merges": False,
                "vocab": {**one["special"], **letters}, "merges": []}}))
  for file in ("tokenizer_config", "config"):
    content = dict(one[file])
    if file == "tokenizer_config":
      content["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / f"{file}.json").write_text(json.dumps(content))
  return folder


def main() -> None:
  from transformers import AutoTokenizer
  record = {}
  for name in FOLDERS:
    with tempfile.TemporaryDirectory() as temporary:
      tokenizer = AutoTokenizer.from_pretrained(save(pathlib.Path(temporary), name))
      record[name] = {
          "begin": tokenizer.bos_token_id, "end": tokenizer.eos_token_id,
          "ids": tokenizer.encode("a b"),
          "plain": tokenizer.encode("a b", add_special_tokens=False)}
  pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  main()
