"""Special tokens: what the files of a tokenizer and of a model say, and what a corpus makes of it.

tests/fidelity/windows.py compares them with transformers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from of_jax.config import Config, apply_overrides, resolve
from of_jax.data import corpora, special_tokens, tokenizer
from of_jax.data.special_tokens import SpecialTokens
from of_jax.errors import UserError
from tests.golden import special_tokens as folders

GOLDEN = json.loads(Path(folders.__file__).with_suffix(".json").read_text())


@pytest.mark.parametrize("name", folders.FOLDERS)
def test_texts_become_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
  """Special tokens are put around a text by whoever cuts it into windows, not by the encoder."""
  path = folders.save(tmp_path, name) / "tokenizer.json"
  encoder = tokenizer.read(path, "x")
  assert encoder.encode(["a b"])[0].tolist() == GOLDEN[name]["plain"]
  assert (encoder.end_token, encoder.begin_token) == (GOLDEN[name]["end"], GOLDEN[name]["begin"])
  # What only spells a special token is text.
  spelt = "".join(folders.FOLDERS[name]["special"])
  assert not {encoder.end_token, encoder.begin_token} & set(encoder.encode([spelt])[0].tolist())


def test_files_that_do_not_agree_are_said(tmp_path: Path) -> None:
  for name, words in (("asked", "=true, but the post-processor of tokenizer.json adds none"),
                      ("refused", "=false, but the post-processor of tokenizer.json adds a")):
    assert words in special_tokens.of_folder(folders.save(tmp_path / name, name)).note
  assert not special_tokens.of_folder(folders.save(tmp_path / "opt", "opt")).note


def rewritten(folder: Path, name: str, **change: Any) -> SpecialTokens:
  """The special tokens of a folder whose file `name` says something else."""
  path = folder / f"{name}.json"
  old = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps({**old, **change}))
  return special_tokens.of_folder(folder)


def test_the_tokenizer_comes_before_the_model_and_both_before_common_names(tmp_path: Path) -> None:
  folder = folders.save(tmp_path, "misleading")
  assert special_tokens.of_folder(folder) == SpecialTokens(3, 2)
  assert rewritten(folder, "config", bos_token_id=0) == SpecialTokens(3, 2)
  assert rewritten(folder, "tokenizer_config", bos_token=None, eos_token=None) == (
      SpecialTokens(3, 0))
  assert rewritten(folder, "special_tokens_map", bos_token={"content": "<begin>"}).begin == 2
  (folder / "special_tokens_map.json").unlink()
  assert rewritten(folder, "config", bos_token_id=None, eos_token_id=[2, 3]) == SpecialTokens(2, 0)
  assert rewritten(folder, "generation_config", bos_token_id=2).begin == 2
  # Ids that no token has, and a truth value, are none.
  assert rewritten(folder, "generation_config", bos_token_id=99).begin == 0
  assert rewritten(folder, "config", bos_token_id=True, eos_token_id=-1) == SpecialTokens(1, 0)
  assert rewritten(folder, "tokenizer", post_processor=folders.template({"<finish>": 3}, {})) == (
      SpecialTokens(1, 3, True))
  (folder / "tokenizer.json").unlink()
  assert rewritten(folder, "config", bos_token_id=5, eos_token_id=6) == SpecialTokens(6, 5)
  (folder / "generation_config.json").write_text("{")
  with pytest.raises(UserError, match="generation_config.json: not JSON"):
    special_tokens.of_folder(folder)


def test_what_is_decided() -> None:
  known, unknown = SpecialTokens(1, 2, True), SpecialTokens(1, None)
  for choice, default, begins in (("auto", True, True), ("auto", False, False),
                                  ("yes", False, True), ("no", True, False)):
    assert special_tokens.decide(choice, default, known, "x") is begins
  with pytest.raises(UserError, match="begin_token=yes: no begin token is known of x: neither a"):
    special_tokens.decide("yes", False, unknown, "x")
  with pytest.raises(UserError, match="begin_token=maybe: not one of auto, yes, no"):
    special_tokens.decide("maybe", False, known, "x")
  assert known.within(2) == SpecialTokens(1, None, False) and known.within(3) == known


def test_a_corpus_ends_documents_as_the_tokenizer_s_files_say(make_data: Any, tmp_path: Path,
                                                              log: Any) -> None:
  """By their token, and by another that the config names; each has tokens of its own."""
  (tmp_path / "text").mkdir()
  for i in range(30):
    (tmp_path / "text" / f"{i}.txt").write_text("ab cd ef " * (i + 5))
  path = folders.save(tmp_path / "model", "misleading") / "tokenizer.json"
  fields = {"corpus": f"text:{tmp_path / 'text'}", "tokenizer": str(path), "vocab_size": 300}
  found = corpora.prepare(make_data(**fields), log)
  other = corpora.prepare(make_data(**fields, end_token_id=0, begin_token_id=1), log)
  (path.parent / "tokenizer_config.json").unlink()
  (path.parent / "config.json").unlink()
  bare = corpora.prepare(make_data(**fields), log)
  for corpus, end, begin in ((found, 3, 2), (other, 0, 1), (bare, 1, 0)):
    assert (corpus.end_token, corpus.begin_token) == (end, begin)
    tokens = np.concatenate([corpus.train, corpus.validation])
    assert (tokens == end).sum() == 30 and not np.isin(tokens, list({0, 1, 2, 3} - {end})).any()
  resolve(apply_overrides(Config(), [
      ("data.tokenizer", str(path)), ("data.end_token_id", "0")]))
