"""Files of JSON lines: their texts are documents, and a line without one is named."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from of_jax.data import corpora, files, text_file, tokenizer
from of_jax.errors import UserError

TEXTS = [f"document {i}\nwith a second line\n" for i in range(80)]


def write(path: Path, texts: Sequence[str], field: str = "text") -> Path:
  raw = "".join(json.dumps({"id": i, field: one}) + "\n" for i, one in enumerate(texts)).encode()
  path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
  return path


def documents_of(corpus: corpora.Corpus) -> list[list[str]]:
  """The documents of train and of validation, decoded."""
  decode = Tokenizer.from_file(str(corpus.tokenizer_path)).decode
  return [decode(part.tolist(), skip_special_tokens=False).removesuffix(tokenizer.END)
          .split(tokenizer.END) for part in (corpus.train, corpus.validation)]


@pytest.mark.parametrize("name, field, asked", [
    ("a.jsonl", "text", ""), ("a.jsonl.gz", "content", ""), ("a.ndjson", "text", ""),
    ("a.json", "content", ""), ("a.json.gz", "body", "body"), ("a.jsonl", "body", "body")])
def test_a_document_a_line_and_some_are_held_out(name, field, asked, tmp_path, make_data, log):
  path = write(tmp_path / name, TEXTS, field)
  assert text_file.read(path, "--text=x", asked, log).documents == tuple(TEXTS)
  corpus = corpora.prepare(make_data(corpus=f"text:{path}", text_field=asked), log)
  train, validation = documents_of(corpus)
  assert sorted(train + validation) == sorted(TEXTS) and 3 <= len(validation) <= 14
  assert [one for one in TEXTS if one in set(train)] == train
  assert corpus.text["text_fields"] == {field: 1}
  # Without line ends of the file, quotes or ids: the text alone is a document's bytes.
  assert "80 documents" in corpus.description


def test_another_field_or_text_is_another_corpus(tmp_path, make_data, log):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps({"text": one, "other": one[::-1]}) + "\n" for one in TEXTS))
  hashes = {corpora.prepare(make_data(corpus=f"text:{path}", text_field=field), log).corpus_sha256
            for field in ("", "other")}
  assert len(hashes) == 2
  write(path, TEXTS[1:])
  assert corpora.prepare(make_data(corpus=f"text:{path}"), log).corpus_sha256 not in hashes


def test_shards_in_a_folder_are_held_out_as_files_and_mix_with_plain_ones(tmp_path, make_data, log):
  folder = tmp_path / "shards"
  folder.mkdir()
  for i in range(0, 80, 4):
    write(folder / f"{i}.jsonl{'.gz' * (i % 8 == 0)}", TEXTS[i:i + 4])
  (folder / "plain.txt").write_text("a plain text\n")
  (folder / "packed.txt.gz").write_bytes(gzip.compress(b"a packed text\n"))
  (folder / "picture.svg.gz").write_bytes(gzip.compress(b"<svg/>"))
  corpus = corpora.prepare(make_data(corpus=f"text:{folder}", validation_fraction=0.3), log)
  parts = documents_of(corpus)
  assert sorted(sum(parts, [])) == sorted([*TEXTS, "a plain text\n", "a packed text\n"])
  held = [TEXTS.index(one) // 4 for one in parts[1] if one in TEXTS]
  assert held and all(held.count(shard) == 4 for shard in held)
  assert "left out 1 of 23 files" in log[0] and "picture.svg.gz: compressed" in log[0]


LINES = {
    "no text": ('{"text": "a"}\n\n{"txt": "b"}', "line 3 has no text, only txt"),
    "null": ('{"text": "a"}\n{"text": null}', "line 2: its text is null, not text"),
    "number": ('{"text": "a"}\n{"text": 3.5}', "line 2: its text is a number, not text"),
    "list": ('{"text": "a"}\n["b"]', "line 2 is a list, not an object"),
    "not JSON": ('{"text": "a"}\n{"text": "b"', "line 2 is not JSON: "),
    "half a character": ('{"text": "a"}\n{"text": "\\ud83d"}', "line 2: its text holds half a"),
    "other names": ('{"body": "a", "id": 1}', "neither text nor content, only body, id; say by "),
    "not at all": ("plain words\n", "line 1 is not JSON"),
    "empty": ("\n", "neither text nor content, and is empty"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_without_a_text_is_named(name, tmp_path, make_data, log):
  lines, words = LINES[name]
  path = tmp_path / "a.jsonl"
  path.write_text(lines)
  with pytest.raises(UserError, match="--text=x: .*" + re.escape(words)):
    text_file.read(path, "--text=x", "", log)
  with pytest.raises(UserError, match=re.escape(words)) as error:
    corpora.prepare(make_data(corpus=f"text:{path}"), log)
  assert "\n" not in str(error.value) and str(error.value).startswith("config.data.corpus=text:")


def test_a_field_that_no_file_has_is_refused(text_folder, tmp_path, make_data, log):
  with pytest.raises(UserError, match="is JSON lines with body; leave config.data.text_field=body"):
    corpora.prepare(make_data(text_field="body"), log)
  with pytest.raises(UserError, match="its first line has no text named body, only id, text"):
    corpora.prepare(make_data(corpus=f"text:{write(tmp_path / 'a.jsonl', TEXTS)}",
                              text_field="body"), log)


@pytest.mark.parametrize("content", ['[{"text": "one document"}]\n', '{\n  "text": "a"\n}\n',
                                     '{"key": 1}\n{"key": 2}\n'])
def test_json_of_another_form_is_text_and_a_line_says_so(content, tmp_path, log):
  path = tmp_path / "a.json"
  path.write_text(content)
  assert text_file.read(path, "--text=x", "", log).documents == (content,)
  assert "--text=x: is tokenised as it is, as raw JSON" in log[0]
  split = files.text(str(path), log).split(0.3)
  assert "".join(d.read() for d in (*split.train, *split.validation)) == content
  assert "1 of 1 files are tokenised as they are, as raw JSON" in log[1]


@pytest.mark.parametrize("name", ["a.txt", "a.jl", "a.jsonl.txt"])
def test_json_lines_by_another_name_are_text_and_a_line_says_so(name, tmp_path, log):
  path = write(tmp_path / "a.jsonl", TEXTS).rename(tmp_path / name)
  text_file.read(path, "--text=x", "", log)
  assert "--text=x: is tokenised as it is, as raw JSON" in log[0]
  files.text(str(path), log)
  assert "1 of 1 files are tokenised as they are, as raw JSON" in log[1]


@pytest.mark.parametrize("name", ["a.JSONL", "a.Jsonl.GZ"])
def test_a_name_in_capitals_says_the_same(name, tmp_path, log):
  path = write(tmp_path / "a.jsonl", TEXTS)
  content = path.read_bytes()
  path.unlink()
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
  assert text_file.read(tmp_path / name, "--text=x", "", log).documents == tuple(
      text for text in TEXTS if text)


def test_json_lines_of_other_things_in_a_folder_are_text_and_a_line_says_so(text_folder, log):
  (text_folder / "metrics.jsonl").write_text('{"loss": 1.5}\n{"loss": 1.25}\n')
  split = files.text(str(text_folder), log).split(0.1)
  assert len(split.train) + len(split.validation) == 31
  assert "1 of 31 files are tokenised as they are, as raw JSON" in log[0]


def test_two_documents_are_one_to_train_on_and_one_to_validate_on(tmp_path, log):
  split = files.text(str(write(tmp_path / "a.jsonl", ["first", "second"])), log).split(0.05)
  assert sorted(d.read() for d in (*split.train, *split.validation)) == ["first", "second"]
  assert len(split.train) == len(split.validation) == 1
  with pytest.raises(UserError, match="too few to hold out"):
    files.text(str(write(tmp_path / "b.jsonl", ["alone"])), log).split(0.05)
