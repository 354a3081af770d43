"""Downloads or reads a corpus, trains its tokenizer and writes its tokens, once; whitens images.

Training does the same when it must; run this first to see it happen, or to keep the folder:
  python -m experiments.prepare_data --corpus=pypi_code --out=DIR
then train with --config.data.corpus=tokens:DIR --config.data.vocab_size=32768.
"""

import shutil
import time
from pathlib import Path

from absl import flags

from of_jax import config as config_lib
from of_jax.commands import cli
from of_jax.config.images import image_shape
from of_jax.config.kinds import kinds_on
from of_jax.errors import UserError

_CORPUS = flags.DEFINE_string(
    "corpus", "python_stdlib", "python_stdlib, pypi_code, text:PATH, tfds:NAME or tokens:PATH; "
    "images: digits, fashion_mnist, fashion_mnist:PATH, cifar10:PATH, tfds:cifar10 and the like.")
_TEXT_FIELD = flags.DEFINE_string(
    "text_field", "", "Which field is the text, in JSON lines of text:PATH or in tfds:NAME.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 32768, "What the BPE is trained to.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", "~/.cache/of_jax", "Folder of tokenised corpora.")
_OUT = flags.DEFINE_string("out", "", "Also leave the tokens here, for data.corpus=tokens:DIR.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "A tokenizer.json to use; default: train one.")
_TOKEN_DTYPE = flags.DEFINE_enum("token_dtype", "uint16", ["uint16", "uint32"],
                                 "Of a tokens:*.bin file.")
_VALIDATION_FRACTION = flags.DEFINE_float("validation_fraction", 0.05, "Share held out.")


def main() -> None:
  try:
    _prepare()
  except UserError as error:
    # The same mistakes are made in a config, whose fields these flags are.
    raise UserError(str(error).replace("config.data.", "--")) from None


def _prepare() -> None:
  config = config_lib.Config(data=config_lib.DataConfig(
      corpus=_CORPUS.value, text_field=_TEXT_FIELD.value, cache_dir=_CACHE_DIR.value,
      tokenizer=_TOKENIZER.value,
      token_dtype=_TOKEN_DTYPE.value,  # type: ignore[arg-type]  # The flag has these choices.
      validation_fraction=_VALIDATION_FRACTION.value))
  images = image_shape(_CORPUS.value) is not None
  settings = [("model.kind", kinds_on("images")[0]),
              ("train.sequence_length", "1")] if images else []
  if not images or flags.FLAGS["vocab_size"].present:
    settings.append(("data.vocab_size", str(_VOCAB_SIZE.value)))
  data = config_lib.apply_overrides(config, settings).data
  out = cli.output_folder("out")
  if out is not None:
    if images:
      raise UserError(f"--out={_OUT.value}: whitened images stay in --cache_dir")
    if data.corpus.startswith("tokens:"):
      raise UserError(f"--out={_OUT.value}: {data.corpus} already is a token folder or file")
    if out.exists():
      raise UserError(f"--out={_OUT.value}: exists; give a folder that does not")
  # Flags are checked first: importing NumPy and walking a corpus takes longer than a typo should.
  from of_jax.data import corpora
  start = time.monotonic()
  corpus = corpora.prepare(data, log=lambda line: print(line, flush=True))
  print(corpus.description)
  folder = corpus.tokenizer_path.parent if corpus.tokenizer_path else None
  if out is not None:
    assert folder is not None
    _leave(folder, out)
    folder = out
  print(f"path: {folder or (data.cache_dir if images else data.corpus.partition(':')[2])}")
  print(f"corpus sha256: {corpus.corpus_sha256}")
  if corpus.tokenizer_path:
    print(f"vocabulary: {data.vocab_size}; a config must have the same, as by "
          f"--config.data.vocab_size={data.vocab_size}, or it tokenises anew")
  print(f"tokenizer sha256: {corpus.tokenizer_sha256 or 'none'}")
  print(f"{time.monotonic() - start:.1f} s")


def _leave(folder: Path, out: Path) -> None:
  """Copies the token folder to `out`, which appears whole or not at all."""
  partial = out.with_name(f".{out.name}.partial")
  try:
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial)
    partial.rename(out)
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written: {error.strerror or error}") from None
  finally:
    shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
  cli.run(main)
