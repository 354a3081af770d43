"""Rules of kinds of model: which fields each reads, and the data that it can be given."""

import dataclasses

from of_jax.config.images import IMAGE_CORPORA, holds_images, image_shape
from of_jax.config.kinds import Kind, kind_of, kinds_on, readers_of
from of_jax.config.own_code import is_own
from of_jax.config.paths import expanded
from of_jax.config.rules.check import Check
from of_jax.config.rules.fields import default
from of_jax.config.sections import Config, DataConfig

# Tokens of a BPE that is trained here.
LARGEST_BPE = 1_000_000


def validate(config: Config, check: Check) -> None:
  """Checks what the kind of a resolved config needs, and that nothing is set that it ignores.

  Raises:
    UserError: through `check`, with the field at fault.
  """
  kind = kind_of(config.model.kind)
  named = f"model.kind={kind.name}"
  for section, read in kind.reads.items():
    part = getattr(config, section)
    for field in dataclasses.fields(part):
      if field.name not in read:
        owners = " or ".join(readers_of(section, field.name))
        check(getattr(part, field.name) == field.default, f"{section}.{field.name}",
              f"is part of model.kind={owners} and does nothing in {kind.name}")
  _check_paths(config.data, check)
  length = kind.sequence_length
  check(length is None or config.train.sequence_length == length, "train.sequence_length",
        f"must be {length} for {named}: an image is one token")
  check(kind.loss == "cross-entropy" or config.train.z_loss == default("train.z_loss"),
        "train.z_loss",
        f"is part of cross-entropy; {named} has a {kind.loss}")
  check(not kind.starts_at_zero or "unembedding" in config.optim.train_roles, "optim.train_roles",
        f"leaves out unembedding, which starts at zero in {named}: nothing before it would get a "
        "gradient")
  if kind.inputs == "images":
    _check_images(config.data, check)
  else:
    _check_tokens(kind, config.data, check)


def _check_images(data: DataConfig, check: Check) -> None:
  """Checks the data section of a model that reads images."""
  check(holds_images(data.corpus), "data.corpus", f"holds no images; use {IMAGE_CORPORA}")
  known = image_shape(data.corpus)
  for path, value in (("data.input_size", data.input_size), ("data.classes", data.classes)):
    check(value is not None, path, f"must be given for {data.corpus}, which is not known here")
  if known is not None:
    pixels, classes = known
    assert data.input_size is not None
    check(data.input_size <= pixels, "data.input_size",
          f"an image of {data.corpus} has {pixels} entries")
    check(data.classes == classes, "data.classes", f"{data.corpus} has {classes}")
    check(data.whitening == "pca" or data.input_size == pixels, "data.input_size",
          f"leaves out principal components; data.whitening=none needs all {pixels} entries")


def _check_paths(data: DataConfig, check: Check) -> None:
  """Checks that what names files can be looked at."""
  check(bool(data.cache_dir.strip()), "data.cache_dir", "give a folder")
  for name in ("cache_dir", "tokenizer"):
    if getattr(data, name):
      expanded(getattr(data, name), f"config.data.{name}={getattr(data, name)}")


def _check_tokens(kind: Kind, data: DataConfig, check: Check) -> None:
  """Checks the data section of a model that reads tokens."""
  on_images = f"model.kind={' or '.join(kinds_on('images'))}"
  for_images = f"is part of {on_images} and does nothing in {kind.name}"
  source, _, rest = data.corpus.partition(":")
  check(source == "tfds" or not holds_images(data.corpus), "data.corpus",
        f"holds images; they are for {on_images}")
  check(data.corpus in ("python_stdlib", "pypi_code")
        or (source in ("text", "tfds", "tokens") and bool(rest))
        or is_own("data.corpus", data.corpus), "data.corpus",
        "not python_stdlib, pypi_code, text:PATH, tfds:NAME, tokens:PATH or FILE.py:NAME")
  check(not data.text_field or source in ("text", "tfds"), "data.text_field",
        "only for data.corpus=text:PATH or tfds:NAME")
  for name in ("input_size", "classes", "whitening"):
    check(getattr(data, name) == default(f"data.{name}"), f"data.{name}", for_images)
  is_given = source == "tokens" or bool(data.tokenizer)
  for path in ("data.begin_token_id", "data.end_token_id"):
    token = getattr(data, path.split(".")[1])
    check(token is None or is_given, path,
          "only for data.corpus=tokens:PATH or with data.tokenizer")
    check(token is None or token < data.vocab_size, path,
          f"is not below data.vocab_size={data.vocab_size}")
  check(data.vocab_size >= 258 or is_given, "data.vocab_size",
        "a byte-level BPE needs at least 258: the bytes, end-of-text and begin")
  # The trainer takes memory for all of it before it has seen a text.
  check(data.vocab_size <= LARGEST_BPE or is_given, "data.vocab_size",
        f"a BPE that is trained here may have at most {LARGEST_BPE:,} tokens")
