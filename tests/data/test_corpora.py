"""Sources and their splits, and what `prepare` makes of them."""

import re
import sys
import sysconfig
import types
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from of_jax.data import corpora, documents, files, tokenizer
from of_jax.errors import UserError


def decode(corpus: corpora.Corpus, tokens: np.ndarray) -> str:
  return Tokenizer.from_file(str(corpus.tokenizer_path)).decode(
      tokens.tolist(), skip_special_tokens=False)


def documents_of(corpus: corpora.Corpus) -> list[str]:
  """Every document of train, then of validation, decoded."""
  text = decode(corpus, corpus.train) + decode(corpus, corpus.validation)
  assert text.endswith(tokenizer.END)
  return text.removesuffix(tokenizer.END).split(tokenizer.END)


def test_every_file_becomes_one_document_and_comes_back_unchanged(make_data, text_folder, log):
  corpus = corpora.prepare(make_data(), log)
  expected = sorted(path.read_text() for path in text_folder.rglob("*.py"))
  assert sorted(documents_of(corpus)) == expected
  assert (corpus.train == corpus.end_token).sum() == 27
  assert (corpus.validation == corpus.end_token).sum() == 3
  assert corpus.train.dtype == np.uint16 and isinstance(corpus.train, np.memmap)
  assert (corpus.end_token, corpus.begin_token) == (0, 1)
  assert max(corpus.train.max(), corpus.validation.max()) < corpus.vocab_size <= 300
  assert re.search(r"30 documents, [\d,]+ train and [\d,]+ validation tokens, own byte-level BPE "
                   r"of 300 tokens \(\w{8}\), \d\.\d\d bytes a token", corpus.description)


def test_bytes_a_token_in_the_description_are_those_of_train(make_data, log):
  corpus = corpora.prepare(make_data(), log)
  raw = decode(corpus, corpus.train).replace(tokenizer.END, "").encode()
  assert f"{len(raw) / len(corpus.train):.2f} bytes a token" in corpus.description


def test_split_depends_on_names_and_not_on_the_order_of_files():
  sizes = {f"folder/file{i}": 100 + i for i in range(200)}
  held = documents.hold_out(sizes, 0.1)
  assert held == documents.hold_out(dict(reversed(sizes.items())), 0.1)
  assert 0.09 < sum(sizes[name] for name in held) / sum(sizes.values()) <= 0.1
  # Neighbours in a folder are alike: the held out must not be a run of neighbours.
  places = [sorted(sizes).index(name) for name in held]
  assert max(places) - min(places) > 100


def test_split_of_a_file_is_stable_when_other_files_come(text_folder, log):
  def held() -> set[str]:
    return {d.name for d in files.text(str(text_folder), log).split(0.2).validation}
  before = held()
  (text_folder / "one_more.py").write_text("value = 1\n" * 40)
  assert len(before & held()) >= len(before) - 1


def test_a_single_file_is_split_at_a_line_near_the_share(tmp_path, log):
  path = tmp_path / "book.txt"
  path.write_text("".join(f"line {i} of the book\n" for i in range(1000)))
  split = files.text(str(path), log).split(0.1)
  (train,), (validation,) = split.train, split.validation
  assert train.read() + validation.read() == path.read_text()
  assert train.read().endswith("\n") and validation.read().startswith("line")
  assert validation.size / path.stat().st_size == pytest.approx(0.1, rel=0.02)
  assert "by line" in split.rule


def test_a_file_without_lines_is_cut_between_characters(tmp_path, log):
  (tmp_path / "one.txt").write_text("é" * 1001)
  split = files.text(str(tmp_path / "one.txt"), log).split(0.5)
  assert [len(d.read()) for d in (*split.train, *split.validation)] == [500, 501]


def test_few_large_files_are_split_by_line(tmp_path, log):
  for name in ("a", "b", "c"):
    (tmp_path / name).write_text(f"{name} line\n" * 500)
  split = files.text(str(tmp_path), log).split(0.1)
  assert len(split.train) == len(split.validation) == 3
  assert sum(d.size for d in split.validation) == pytest.approx(0.1 * 3 * 3500, rel=0.05)


def test_binary_empty_and_hidden_files_are_left_out_and_counted(text_folder, log):
  (text_folder / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
  (text_folder / "zeros").write_bytes(b"a\0b")
  (text_folder / "empty.py").write_bytes(b"")
  (text_folder / ".hidden").write_text("secret\n")
  (text_folder / ".git").mkdir()
  (text_folder / ".git" / "config").write_text("secret\n")
  split = files.text(str(text_folder), log).split(0.1)
  assert len(split.train) + len(split.validation) == 30
  assert len(log) == 1 and "left out 3 of 33 files" in log[0]


def test_a_file_that_changes_meanwhile_is_reported(tmp_path, log):
  path = tmp_path / "book.txt"
  path.write_text("a line\n" * 100)
  split = files.text(str(path), log).split(0.1)
  path.write_text("another\n" * 100)
  with pytest.raises(UserError, match="changed while"):
    split.train[0].read()


@pytest.mark.parametrize("content, message", [
    (None, "no such file or folder"), (b"", "an empty file"), (b"\xff\xfe\x00", "not UTF-8 text"),
    (b"a", "1 bytes are too few to hold out config.data.validation_fraction=0.1")])
def test_a_text_that_cannot_be_used_is_one_line(tmp_path, make_data, log, content, message):
  path = tmp_path / "given.txt"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=re.escape(f"config.data.corpus=text:{path}: {message}")):
    corpora.prepare(make_data(corpus=f"text:{path}"), log)


def test_a_folder_without_text_is_one_line(tmp_path, make_data, log):
  folder = tmp_path / "folder"
  folder.mkdir()
  with pytest.raises(UserError, match="a folder without files"):
    corpora.prepare(make_data(corpus=f"text:{folder}"), log)
  (folder / "binary").write_bytes(b"\xff")
  with pytest.raises(UserError, match="none of its 1 files is UTF-8 text"):
    corpora.prepare(make_data(corpus=f"text:{folder}"), log)


def test_stdlib_leaves_out_tests_and_installed_packages(tmp_path, monkeypatch):
  for name in ("os.py", "json/decoder.py", "json/tests/test_x.py", "test/support.py", "notes.txt",
               "site-packages/numpy.py", "dist-packages/apt.py", "idlelib/idle_test/a.py",
               "__pycache__/os.py"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("import this\n" * 9)
  (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
  monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
  split = files.python_stdlib().split(0.5)
  names = sorted(d.name for d in (*split.train, *split.validation))
  assert names == ["json/decoder.py", "os.py"]


def test_stdlib_of_this_python():
  split = files.python_stdlib().split(0.05)
  assert len(split.train) + len(split.validation) > 400
  share = sum(d.size for d in split.validation)
  share /= share + sum(d.size for d in split.train)
  assert share == pytest.approx(0.05, abs=0.003)
  assert not any("/test" in d.name or "site-packages" in d.name for d in split.train)


class Text:
  """Stands for tfds.features.Text, which the source finds by its class's name."""


def fake_tfds(monkeypatch, splits: dict[str, list[dict[str, bytes]]], features: list[str]):
  """Installs a tensorflow_datasets with one dataset, `tiny`."""
  info = types.SimpleNamespace(
      full_name="tiny/1.0.0", features={"label": object()} | {name: Text() for name in features},
      splits={k: types.SimpleNamespace(num_examples=len(v)) for k, v in splits.items()})

  def builder(name, file_format):
    if name != "tiny":
      raise ValueError(f"Dataset {name} not found.\nThe builders are many.")
    assert file_format == "array_record"  # What as_data_source needs.
    return types.SimpleNamespace(
        info=info, download_and_prepare=lambda: None, as_data_source=lambda split: splits[split])

  monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(builder=builder))


def examples(count: int, first: int = 0) -> list[dict[str, bytes]]:
  return [{"title": b"a title", "document": f"document {i} says é\n".encode(), "label": b"0"}
          for i in range(first, first + count)]


def test_tfds_reads_the_text_and_validates_on_the_datasets_own_split(monkeypatch, make_data, log):
  splits = {"train": examples(20), "validation": examples(5, 20), "test": examples(1, 99)}
  fake_tfds(monkeypatch, splits, ["title", "document"])
  corpus = corpora.prepare(make_data(corpus="tfds:tiny"), log)
  assert documents_of(corpus) == [f"document {i} says é\n" for i in range(25)]
  assert (corpus.validation == 0).sum() == 5


def test_tfds_without_other_splits_holds_out_examples(monkeypatch, make_data, log):
  fake_tfds(monkeypatch, {"train": examples(200)}, ["title", "document"])
  corpus = corpora.prepare(make_data(corpus="tfds:tiny"), log)
  assert sorted(documents_of(corpus)) == sorted(f"document {i} says é\n" for i in range(200))
  assert 10 <= (corpus.validation == 0).sum() <= 30


def test_tfds_mistakes_are_one_line(monkeypatch, make_data, log):
  fake_tfds(monkeypatch, {"train": examples(9)}, [])
  with pytest.raises(UserError, match="cannot open it: ValueError: Dataset typo not found.$"):
    corpora.prepare(make_data(corpus="tfds:typo"), log)
  with pytest.raises(UserError, match="no text feature, only label"):
    corpora.prepare(make_data(corpus="tfds:tiny"), log)
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(UserError, match=r"not installed; run pip install -e '\.\[tfds\]'"):
    corpora.prepare(make_data(corpus="tfds:tiny"), log)


def test_long_texts_are_cut_into_pieces_that_lose_nothing(monkeypatch, tmp_path, make_data, log):
  monkeypatch.setattr(documents, "PIECE_CHARACTERS", 50)
  monkeypatch.setattr(corpora, "_BATCH_CHARACTERS", 120)
  text = "".join(f"line {i}\n" for i in range(300)) + "x" * 500
  assert "".join(documents.pieces(text)) == text
  assert max(map(len, documents.pieces(text))) <= 50
  (tmp_path / "book.txt").write_text(text)
  corpus = corpora.prepare(make_data(corpus=f"text:{tmp_path / 'book.txt'}"), log)
  assert "".join(documents_of(corpus)) == text and len(documents_of(corpus)) == 2


def test_the_tokenizers_sample_is_spread_over_all_documents():
  texts = [documents.Document(str(i), 10, lambda i=i: f"{i:010d}") for i in range(1000)]
  chosen = sorted(int(text) for text in documents.sample(texts, 1000))
  assert len(chosen) == 100
  assert max(np.diff([0, *chosen, 1000])) < 30
  assert len(list(documents.sample(texts, 10 ** 9))) == 1000
  assert list(documents.evenly(1)) == [0] and list(documents.evenly(0)) == []


def test_data_does_not_import_jax():
  import subprocess
  code = ("import sys; from of_jax.data import corpora, loader; "
          "sys.exit('jax' in sys.modules)")
  root = Path(corpora.__file__).parents[2]
  assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
