"""Tokens of SentencePiece, for tests/interop/test_gguf.py. Writes sentencepiece_bpe.json.

It needs sentencepiece 0.2.1, which of_jax does not use:

  python tests/golden/sentencepiece_bpe.py

A BPE with byte fallback is trained on the project's licence, with the settings that LLaMA's has.
Recorded are its pieces, their scores and types as GGUF numbers them, and the tokens of texts.
"""

import io
import json
import pathlib
import random


def texts(source: str) -> list[str]:
  """Pieces of the source, and what a tokenizer stumbles over: spaces, repeats, other scripts."""
  rng = random.Random(0)
  found = ["", " ", "a", "  two  spaces ", "line\n\n\tnext", "日本語 🙂 é", "=" * 37, "1234567"]
  for length in range(1, 120, 10):
    start = rng.randrange(len(source) - length)
    found.append(source[start:start + length])
    found.append("".join(rng.choice("abcdeaaa  \n\té日🙂01_=") for _ in range(length)))
  return found


def main() -> None:
  import sentencepiece
  source = (pathlib.Path(__file__).parents[2] / "LICENSE").read_text()
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(source.split("\n")), model_writer=model, vocab_size=450,
      model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
      remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True)
  trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  pieces = range(trained.get_piece_size())
  chosen = texts(source)
  record = {
      "tokens": [trained.id_to_piece(i) for i in pieces],
      "scores": [trained.get_score(i) for i in pieces],
      "types": [2 if trained.is_unknown(i) else 3 if trained.is_control(i) else
                6 if trained.is_byte(i) else 1 for i in pieces],
      "texts": chosen, "ids": trained.encode(chosen)}
  pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
  main()
