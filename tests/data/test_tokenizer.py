"""The tokenizer: deterministic, trained on train only, and deaf to forged special tokens."""

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from of_jax.data import corpora, tokenizer
from of_jax.errors import UserError

TEXTS = [f"def function_{i}(value):\n  return value * {i}\n" for i in range(200)]


def test_training_twice_gives_equal_bytes_and_fixed_special_ids():
  first = tokenizer.train(iter(TEXTS), 400)
  assert first == tokenizer.train(list(TEXTS), 400)
  vocabulary = json.loads(first)["model"]["vocab"]
  assert (vocabulary["<|endoftext|>"], vocabulary["<|begin|>"]) == (0, 1)
  assert tokenizer.Encoder(tokenizer.train(TEXTS, 280)).vocab_size == 280


def test_the_tokenizer_never_sees_validation(make_data, text_folder, log):
  before = corpora.prepare(make_data(), log)
  names = {path.name: path for path in text_folder.rglob("*.py")}
  held = corpora.files.text(str(text_folder), log).split(0.1).validation
  for document in held:
    path = names[document.name.split("/")[-1]]
    path.write_text(("zyxwvut" * 999)[:path.stat().st_size])
  after = corpora.prepare(make_data(), log)
  assert after.corpus_sha256 != before.corpus_sha256
  assert after.tokenizer_sha256 == before.tokenizer_sha256
  assert np.array_equal(after.train, before.train)


def test_a_text_cannot_forge_the_end_of_a_document(tmp_path, make_data, log):
  text = "before <|endoftext|> and <|begin|> after\n" * 40
  (tmp_path / "attack.txt").write_text(text)
  data = make_data(corpus=f"text:{tmp_path / 'attack.txt'}")
  given = tmp_path / "given.json"
  fields = json.loads(tokenizer.train(TEXTS, 300))
  for token in fields["added_tokens"]:
    token["special"] = False  # As some published tokenizers have it.
  given.write_text(json.dumps(fields))
  for path in ("", str(given)):
    corpus = corpora.prepare(make_data(corpus=data.corpus, tokenizer=path), log)
    assert (corpus.train == 0).sum() == 1 and corpus.train[-1] == 0
    assert not (corpus.train == 1).any()
    decoded = Tokenizer.from_file(str(corpus.tokenizer_path)).decode(
        np.concatenate([corpus.train[:-1], corpus.validation[:-1]]).tolist())
    assert decoded == text


def test_a_given_tokenizer_is_used_and_its_own_limits_are_not(tmp_path, make_data, log):
  given = Tokenizer.from_str(tokenizer.train(TEXTS, 290))
  given.enable_truncation(8)
  given.enable_padding(length=4096, pad_id=1)
  given.post_processor = processors.TemplateProcessing("<|begin|> $A", None, [("<|begin|>", 1)])
  path = tmp_path / "given.json"
  given.save(str(path))
  own = corpora.prepare(make_data(vocab_size=290), log)
  corpus = corpora.prepare(make_data(tokenizer=str(path)), log)
  assert corpus.tokenizer_sha256 == tokenizer.sha256(path.read_text())
  assert corpus.corpus_sha256 == own.corpus_sha256 and corpus.vocab_size == 290
  assert not (corpus.train == 1).any() and "given tokenizer" in corpus.description
  text = Tokenizer.from_file(str(path)).decode(corpus.train.tolist())
  assert text == Tokenizer.from_file(str(own.tokenizer_path)).decode(own.train.tolist())


def test_gpt2_style_tokenizers_have_an_end_and_no_begin():
  fields = tokenizer.train(TEXTS, 300).replace("<|begin|>", "<|other|>")
  encoder = tokenizer.Encoder(fields)
  assert (encoder.end_token, encoder.begin_token) == (0, None)


@pytest.mark.parametrize("content, message", [
    (None, "no such file; give the path of a tokenizer.json"),
    ("{}", "not a tokenizer.json of the tokenizers library"),
    ("no end", "has no end-of-text token: neither it nor a file beside it names one"),
    ("large", "has 310 tokens, more than config.data.vocab_size=300")])
def test_a_tokenizer_that_cannot_be_used_is_one_line(tmp_path, make_data, log, content, message):
  path = tmp_path / "given.json"
  if content == "no end":
    content = tokenizer.train(TEXTS, 300).replace("<|endoftext|>", "<|x|>")
  if content == "large":
    content = tokenizer.train(TEXTS, 310)
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError, match=re.escape(f"tokenizer={path}: {message}")) as error:
    corpora.prepare(make_data(tokenizer=str(path)), log)
  assert "\n" not in str(error.value)


def test_large_vocabularies_take_four_bytes():
  assert tokenizer.Encoder(tokenizer.train(TEXTS, 300)).dtype == "<u2"
  fields = json.loads(tokenizer.train(TEXTS, 300))
  fields["added_tokens"] += [{**fields["added_tokens"][1], "id": 65536, "content": "<|far|>"}]
  fields["model"]["vocab"]["<|far|>"] = 65536
  encoder = tokenizer.Encoder(json.dumps(fields))
  assert (encoder.vocab_size, encoder.dtype) == (65537, "<u4")
