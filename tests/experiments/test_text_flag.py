"""--text of measure and quantise reads bytes as they are, and results record how."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from tokenizers import Tokenizer

from of_jax.commands import data_flags, measure
from of_jax.config import Config, apply_overrides
from of_jax.data import corpora, tokenizer
from of_jax.data.special_tokens import SpecialTokens
from of_jax.errors import UserError

CONTENT = "\ufeffa line\r\nanother\rand\0more\n" * 9


@pytest.fixture
def model(tmp_path: Path) -> types.SimpleNamespace:
  """Makes a model as its texts see it: a tokenizer and special tokens."""
  assert measure.__doc__  # It declares the flags.
  path = tmp_path / "tokenizer.json"
  path.write_text(tokenizer.train([CONTENT], 300))
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["measure"])
  return types.SimpleNamespace(tokenizer=path, special=SpecialTokens(0, 1))


def test_text_keeps_its_bytes_and_json_lines_their_documents(model, tmp_path, capsys):
  decode = Tokenizer.from_file(str(model.tokenizer)).decode
  (tmp_path / "a.txt").write_bytes(CONTENT.encode())
  (tmp_path / "a.jsonl").write_text("".join(
      json.dumps({"id": i, "body": text}) + "\r\n" for i, text in enumerate([CONTENT, "two"])))
  for name, field, documents in (("a.txt", "", [CONTENT]), ("a.jsonl", "body", [CONTENT, "two"])):
    with flagsaver.flagsaver(text=str(tmp_path / name), text_field=field):
      tokens, read = data_flags._tokens(model, "text", f"--text={name}")
    ends = np.flatnonzero(tokens == 0)
    assert len(ends) == len(documents) and ends[-1] == len(tokens) - 1
    assert [decode(part.tolist(), skip_special_tokens=False) for part in np.split(
        tokens, ends)[:-1]] == [documents[0], *(f"{tokenizer.END}{d}" for d in documents[1:])]
    assert read["text"]["unusual"] == {"crlf": 9, "lone_cr": 9, "nul": 9, "byte_order_marks": 9}
    assert f"--text={name}: kept as they are: 9 CRLF" in capsys.readouterr().out


@pytest.mark.parametrize("split", ("validation", "train"))
def test_a_small_corpus_is_measured_whole(split, model, tmp_path, capsys):
  """It has fewer windows than data.eval_sequences, and in validation fewer than a batch."""
  # It declares flags, which flagsaver would take back.
  import grain
  assert grain.MapDataset
  (tmp_path / "a.txt").write_text("".join(f"line {i} of a small file\n" for i in range(80)))
  model.path, model.config = tmp_path / "run", apply_overrides(Config(), [
      ("data.corpus", "tokens:none"), ("data.vocab_size", "300"), ("train.sequence_length", "16"),
      ("train.batch_size", "32"), ("data.cache_dir", str(tmp_path / "cache"))])
  corpus = f"text:{tmp_path / 'a.txt'}"
  with flagsaver.flagsaver(corpus=corpus, split=split):
    batches, _ = data_flags.batches_of(model)
    parts = corpora.prepare(data_flags._of_corpus(model, model.config, "").data, print)
  windows = sum(int(batch["weights"].any(1).sum()) for batch in batches)
  (line,) = [one for one in capsys.readouterr().out.splitlines() if "windows of 16" in one]
  assert line == (f"--corpus={corpus}: {windows} windows of 16 tokens, all that its {split} part "
                  "has; data.eval_sequences=128")
  whole = (len(getattr(parts, split)) - 1) // 16
  assert windows == (whole if split == "validation" else whole - whole % 32) and whole < 128
  assert (0 < windows < 32) == (split == "validation")
  with flagsaver.flagsaver(corpus=corpus, split=split), pytest.raises(
      UserError, match=f"--corpus=.*: its .* {split} tokens make no window of 4096; 4,097 wo"):
    model.config = apply_overrides(model.config, [("train.sequence_length", "4096")])
    data_flags.batches_of(model)


@pytest.mark.parametrize("given, words", [
    (["--text=x", "--tokens=y"], "give one of them"),
    (["--text_field=body", "--tokens=y.npy"], "--text_field=body: is of --text and --corpus")])
def test_flags_that_contradict_each_other_are_one_line(given, words, model):
  values = dict(flag.removeprefix("--").split("=") for flag in given)
  with flagsaver.flagsaver(run=["r"], **values), pytest.raises(UserError, match=words):
    measure.check_data()


def test_an_archive_of_arrays_is_no_array_of_tokens(model, tmp_path):
  np.savez(tmp_path / "a.npz", np.arange(9))
  with flagsaver.flagsaver(tokens=str(tmp_path / "a.npz")):
    with pytest.raises(UserError, match="--tokens=x: not a .npy file of numbers"):
      data_flags._tokens(model, "tokens", "--tokens=x")
