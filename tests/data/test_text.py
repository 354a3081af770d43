"""Text is its bytes, to --text and to a corpus alike; what is unusual is said and recorded."""

import bz2
import gzip
import json
import lzma
import re
import sys

import pytest
from tokenizers import Tokenizer

from of_jax.data import corpora, text, text_file, tokenizer
from of_jax.errors import UserError

BODY = "".join(f"a line of text, number {i}\n" for i in range(60))
# What is unusual -> the text, its record, and words of the line.
UNUSUAL = {
    "crlf": (BODY.replace("\n", "\r\n"), {"crlf": 60}, "60 CRLF line ends"),
    "lone cr": (BODY.replace("\n", "\r"), {"lone_cr": 60}, "60 CR without LF"),
    "mixed": (BODY + "one\r\ntwo\rthree\r\r\n", {"crlf": 2, "lone_cr": 2},
              "2 CRLF line ends, 2 CR without LF"),
    "nul": (BODY + "here\0and\0there\n", {"nul": 2}, "2 NUL bytes"),
    "mark": ("\ufeff" + BODY, {"byte_order_marks": 1}, "1 byte-order marks"),
    "replaced": (BODY + "caf\ufffd\n", {"replacement_characters": 1}, "1 U+FFFD"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_kept_said_and_recorded_by_flag_and_corpus(
    name, tmp_path, make_data, log):
  content, unusual, words = UNUSUAL[name]
  path = tmp_path / "given.txt"
  path.write_bytes(content.encode())
  given = text_file.read(path, "--text=x", "", log)
  assert given.documents == (content,)
  assert given.record["unusual"] == unusual and given.record["policy"] == text.POLICY
  assert log == [log[0]] and log[0].startswith("--text=x: kept as they are: " + words)
  for _ in range(2):  # Built, and out of the cache.
    del log[:]
    corpus = corpora.prepare(make_data(corpus=f"text:{path}", vocab_size=300), log)
    assert corpus.text["unusual"] == unusual and corpus.text["policy"] == text.POLICY
    assert log[-1].startswith(f"text:{path}: kept as they are: {words}")
  decode = Tokenizer.from_file(str(corpus.tokenizer_path)).decode
  parts = [decode(part.tolist(), skip_special_tokens=False).removesuffix(tokenizer.END)
           for part in (corpus.train, corpus.validation)]
  assert "".join(parts) == content


def test_an_ordinary_text_is_read_without_a_word(tmp_path, log):
  (tmp_path / "given.txt").write_text(BODY + "é 漢\t\f\n")
  record = text_file.read(tmp_path / "given.txt", "--text=x", "", log).record
  assert log == [] and record["unusual"] == {} and record["bytes"] == len(BODY) + 9


# Bytes that are no UTF-8 text -> what the line says of them.
OTHERS = {
    "utf-16": (BODY.encode("utf-16"), "mark of UTF-16; convert it, as by iconv -f UTF-16"),
    "utf-16-be, marked": (b"\xfe\xff" + BODY.encode("utf-16-be"), "byte-order mark of UTF-16"),
    "utf-32": (BODY.encode("utf-32"), "byte-order mark of UTF-32"),
    "utf-16-le": (BODY.encode("utf-16-le"), "looks like UTF-16LE without a byte-order mark"),
    "utf-16-be": (BODY.encode("utf-16-be"), "looks like UTF-16BE without"),
    "utf-32-le": (BODY.encode("utf-32-le"), "looks like UTF-32LE without"),
    "latin-1": (b"a line\nand caf\xe9 au lait\n", "byte 0xe9 at 14, in line 2; if it is Latin-1"),
    "cut off": ("a café".encode()[:-1], "ends in the middle of a character, at byte 5"),
    "half a pair": ("a café".encode() + b"\xed\xa0\x80", "bytes ed a0 80 at 7, in line 1, are ha"),
    "zeros": (b"some\0\0\0text\0\0", "5 of its 13 bytes are NUL"),
    "gzip": (gzip.compress(BODY.encode()), "it is compressed by gzip; unpack it first"),
    "tar": (b"a.txt".ljust(257, b"\0") + b"ustar\0" + BODY.encode() * 9, "it is a tar archive"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_bytes_that_are_no_text_are_one_line_to_flag_and_corpus(name, tmp_path, make_data, log):
  raw, words = OTHERS[name]
  path = tmp_path / "given.txt"
  path.write_bytes(raw)
  with pytest.raises(UserError, match="--text=x: not UTF-8 text: ") as error:
    text_file.read(path, "--text=x", "", log)
  assert words in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(UserError, match=re.escape(words)):
    corpora.prepare(make_data(corpus=f"text:{path}"), log)
  (tmp_path / "folder").mkdir()
  path.rename(tmp_path / "folder" / "given.txt")
  (tmp_path / "folder" / "good.txt").write_text(BODY)
  corpus = corpora.prepare(make_data(corpus=f"text:{tmp_path / 'folder'}"), log)
  assert corpus.text["left_out"] == 1 and "left out 1 of 2 files" in log[0] and words in log[0]


def test_a_run_of_an_earlier_cache_reads_it(make_data, log, tmp_path):
  """Removes what meta.json has since: the cache serves, with its tokens and hash."""
  from of_jax.data import folder
  built = corpora.prepare(make_data(), log)
  entry = built.tokenizer_path.parent
  meta = folder.read_meta(entry)
  del meta["text"]
  folder.write_meta(entry, meta)
  del log[:]
  corpus = corpora.prepare(make_data(), log)
  assert corpus.corpus_sha256 == built.corpus_sha256 and log == []
  assert corpus.text["policy"] == text.POLICY and corpus.text["unusual"] is None


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": None}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files_are_read_whole_or_not_at_all(ending, tmp_path, log):
  if ending == ".zst":
    zstandard = pytest.importorskip("zstandard")

    def pack(raw: bytes) -> bytes:  # Two frames, as tools write that work in parallel.
      return zstandard.compress(raw[:700]) + zstandard.compress(raw[700:])
  else:
    pack = PACKED[ending]
  path = tmp_path / f"given.txt{ending}"
  path.write_bytes(pack(BODY.encode()))
  assert text_file.read(path, "--text=x", "", log).documents == (BODY,)
  path.write_bytes(pack(BODY.encode())[:-9])
  with pytest.raises(UserError, match=f"x: is not compressed as {ending}, or cut off: "):
    text_file.read(path, "--text=x", "", log)
  path.write_bytes(BODY.encode())
  with pytest.raises(UserError, match=f"x: is not compressed as {ending}, or cut off: "):
    text_file.read(path, "--text=x", "", log)
  path = tmp_path / f"given.jsonl{ending}"
  path.write_bytes(pack(b"".join(json.dumps({"text": line}).encode() + b"\n"
                                 for line in BODY.splitlines())))
  assert text_file.read(path, "--text=x", "", log).documents == tuple(BODY.splitlines())


def test_without_zstandard_a_line_says_what_to_install(tmp_path, monkeypatch, log):
  monkeypatch.setitem(sys.modules, "zstandard", None)
  (tmp_path / "a.jsonl.zst").write_bytes(b"any")
  with pytest.raises(UserError, match=re.escape("zstandard; run pip install -e '.[zstd]'")):
    text_file.read(tmp_path / "a.jsonl.zst", "--text=x", "", log)
