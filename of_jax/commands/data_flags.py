"""Flags that say on which data a model is read, as measure declares them: from them to batches."""

import dataclasses
from typing import Any

from absl import flags

from of_jax.config.kinds import kind_of
from of_jax.config.paths import check_file, expanded
from of_jax.errors import UserError, refusing
from of_jax.interop.source import NO_CORPUS
from of_jax.storage import remote


def given() -> list[str]:
  """Names those flags that name data and are given."""
  return [name for name in ("tokens", "text", "corpus") if flags.FLAGS[name].value]


def batches_of(model: Any, split: str | None = None, count: int | None = None
               ) -> tuple[Any, dict[str, Any]]:
  """Makes the batches that the flags ask for, and describes them: `data` in words, `text` as it
  was read, and whether windows of tokens begin with the begin token (`begin_token`).

  Args:
    split, count: of a corpus, in place of --split and --batches.
  """
  from of_jax.analysis import replay
  from of_jax.data.corpora import prepare
  name = next(iter(given()), "")
  if kind_of(model.config.model.kind).inputs == "images":
    for flag in (name, "begin_token" if flags.FLAGS["begin_token"].present else ""):
      if flag:
        raise UserError(f"--{flag}: the run's model reads images, and only its own corpus")
  where = f"--{name}={flags.FLAGS[name].value}" if name else ""
  tokens, read = _tokens(model, name, where) if name in ("tokens", "text") else (None, {})
  config, in_front, begun = _begun(model, tokens, where)
  if tokens is not None:
    batches = replay.token_batches(config, tokens, where, flags.FLAGS.batches, model.special.end,
                                   model.special.begin)
  else:
    if name:
      config = _of_corpus(model, config, where)
    corpus, split = prepare(config.data, print), split or flags.FLAGS.split
    if name:
      config, corpus = _of_its_windows(config, corpus, split, where)
    read = {"data": f"{corpus.description}; {split}, sha256 {corpus.corpus_sha256}"}
    if corpus.text is not None:
      read["text"] = corpus.text
    batches = replay.corpus_batches(config, corpus, split, count or flags.FLAGS.batches)
  if in_front:
    batches = replay.begin_windows(batches, model.special.begin)
  return batches, {**read, **begun}


def _tokens(model: Any, name: str, where: str) -> tuple[Any, dict[str, Any]]:
  """The tokens of --tokens or --text, and how they were read."""
  from of_jax.analysis import replay
  from of_jax.data import npy, text_file
  path = expanded(str(flags.FLAGS[name].value), where)
  if name == "text":
    texts = text_file.read(path, where, flags.FLAGS.text_field, print)
    return replay.encode(model, texts.documents, where), {"data": where, "text": texts.record}
  check_file(where, path)
  with refusing(where, "not a .npy file of numbers"):
    return npy.open_npy(path), {"data": where}


def _of_corpus(model: Any, config: Any, where: str) -> Any:
  """The config that reads --corpus as the model would."""
  from of_jax import config as config_lib
  own_ids, special = flags.FLAGS.corpus.startswith("tokens:"), model.special
  if not own_ids and model.tokenizer is None:
    raise UserError(f"{where}: the run came without a tokenizer to read text with; "
                    "give --tokens=FILE.npy")
  return config_lib.resolve(dataclasses.replace(config, data=dataclasses.replace(
      config.data, corpus=flags.FLAGS.corpus, text_field=flags.FLAGS.text_field,
      end_token_id=special.end, begin_token_id=special.begin,
      tokenizer="" if own_ids else str(model.tokenizer))))


def _of_its_windows(config: Any, corpus: Any, split: str, where: str) -> tuple[Any, Any]:
  """The config and corpus that read of --corpus what windows the split has, as far as the config
  wants them, whatever the other split has."""
  tokens, length, wanted = getattr(corpus, split), config.train.sequence_length, (
      config.data.eval_sequences)
  windows = max(0, len(tokens) - 1) // length
  if not windows:
    remedy = ", or a smaller --sequence_length" if flags.FLAGS.model else ""
    raise UserError(f"{where}: its {len(tokens):,} {split} tokens make no window of {length}; "
                    f"{length + 1:,} would do{remedy}")
  size = min(config.train.batch_size, windows)
  if windows < wanted:
    # Training batches are whole.
    wanted = windows if split == "validation" else windows - windows % size
    print(f"{where}: {wanted:,} windows of {length} tokens, all that its {split} part has; "
          f"data.eval_sequences={config.data.eval_sequences}", flush=True)
  return dataclasses.replace(
      config, data=dataclasses.replace(config.data, eval_sequences=wanted),
      train=dataclasses.replace(config.train, batch_size=size)), dataclasses.replace(
          corpus, train=tokens, validation=tokens)


def _begun(model: Any, tokens: Any, where: str) -> tuple[Any, bool, dict[str, Any]]:
  """The config that windows are made by, whether the begin token comes in front of them, and what
  is said of it.

  By default text is begun as the model's tokenizer does it, and whatever is cut into windows as the
  run did. Token ids that were given for a model from elsewhere, or as windows, stay as they are.
  A run's windows have the begin token in place of their last token, as in training; the others
  have it in front, so that the same tokens are predicted with or without it.
  """
  if kind_of(model.config.model.kind).inputs == "images":
    return model.config, False, {}
  from of_jax.data import special_tokens
  data, special, asked = model.config.data, model.special, flags.FLAGS.begin_token
  are_windows = tokens is not None and tokens.ndim == 2
  # The folder that experiments.load leaves is a run that has trained nothing.
  is_foreign = bool(flags.FLAGS.model) or data.corpus == NO_CORPUS
  are_ids = bool(flags.FLAGS.tokens) or flags.FLAGS.corpus.startswith("tokens:")
  try:
    begins = special_tokens.decide(
        asked, data.begin_token and not are_windows and not (is_foreign and are_ids), special,
        remote.name_of(model.path))
  except UserError as error:
    raise UserError(f"--{error}") from None
  have_it = int((tokens[:, :1] == special.begin).sum()) if are_windows else 0
  if begins and have_it:
    if have_it < len(tokens):
      raise UserError(f"{where}: {have_it} of {len(tokens)} windows begin with the begin token "
                      f"{special.begin}; give windows that all do, or none")
    begins = False
  if asked == "auto" and data.begin_token and are_ids and is_foreign and not have_it:
    print(f"{where}: token ids, read as they are; the model's tokenizer begins a text with token "
          f"{special.begin}, as --begin_token=yes would")
  in_front = begins and (is_foreign or are_windows)
  config = _with_length(model.config, are_windows, in_front)
  return (dataclasses.replace(config, data=dataclasses.replace(
      config.data, begin_token=begins and not in_front)), in_front,
          {"begin_token": {"asked": asked, "added": begins, "id": special.begin}})


def _with_length(config: Any, are_windows: bool, in_front: bool) -> Any:
  """The config of a model from elsewhere, for windows of --sequence_length, or those given; with
  room for a begin token in front of them."""
  longest = config.train.sequence_length - in_front
  length = flags.FLAGS.sequence_length or longest
  if length > longest:
    raise UserError(f"--sequence_length={length}: the model was made for at most "
                    f"{config.train.sequence_length}" + (
                        f", the begin token among them; give at most {longest}, or --begin_token=no"
                        if in_front else ""))
  if flags.FLAGS.model and not flags.FLAGS.sequence_length and not are_windows:
    length = min(longest, 512)
  return dataclasses.replace(config, train=dataclasses.replace(
      config.train, sequence_length=length))
