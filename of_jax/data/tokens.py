"""Tokens that a user brings: .bin or .npy files, local or remote, or prepare_data's own folder.

Enters: `tokens:PATH`. Leaves: a `Corpus` over the file itself, or over one copy of a remote one.
"""

import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from of_jax.config import DataConfig
from of_jax.config.paths import expanded
from of_jax.data import cache, token_files, tokenizer
from of_jax.data.folder import META, PARTS, TOKENIZER, Corpus, Damaged, Tokens, open_folder
from of_jax.errors import UserError

# Bytes that take more than seconds to look through.
_LONG = 10_000_000_000
_CHUNK = 1 << 24

Log = Callable[[str], None]


def open_tokens(data: DataConfig, log: Log) -> Corpus:
  """Opens the tokens that `data.corpus`, tokens:PATH, names.

  PATH is a .bin or .npy file, whose last `data.validation_fraction` is held out, a folder with
  train and validation files, or one that prepare_data made; or the URL of one of these.

  Raises:
    UserError: no such file, not tokens, or a token that the model has no embedding for.
  """
  where = f"config.data.corpus={data.corpus}"
  text = data.corpus.partition(":")[2]
  path = _local(where, text, data.cache_dir, log) if "://" in text else expanded(text, where)
  if path.is_dir() and (path / META).exists():
    return _prepared(where, path, data)
  if path.is_dir():
    files = {part: _file_of(where, path, part) for part in PARTS}
    arrays = {part: token_files.load(where, file, data.token_dtype, log)
              for part, file in files.items()}
  elif path.exists():
    tokens = token_files.load(where, path, data.token_dtype, log)
    cut = len(tokens) - round(len(tokens) * data.validation_fraction)
    arrays = {"train": tokens[:cut], "validation": tokens[cut:]}
    files = dict.fromkeys(PARTS, path)
  else:
    raise UserError(f"{where}: no such file or folder")
  digest = hashlib.sha256()
  for part in PARTS:
    # A folder's parts are counted from their own beginning, a file's from the file's.
    first = len(arrays["train"]) if part == "validation" and not path.is_dir() else 0
    if not len(arrays[part]):
      raise UserError(f"{where}: no {part} tokens in {files[part].name}")
    digest.update(f"{part} {len(arrays[part])}\n".encode())
    if arrays[part].nbytes > _LONG:
      log(f"{where}: looks through {arrays[part].nbytes / 1e9:,.0f} GB of {part} tokens, as at "
          "every start")
    only = _check(where, arrays[part], files[part], first, data.vocab_size, digest)
    if only is not None:
      log(f"{where}: all {len(arrays[part]):,} {part} tokens of {files[part].name} are {only}; a "
          "file that was made and never filled is like that")
  given = tokenizer.load(data) if data.tokenizer else None
  return Corpus(
      arrays["train"], arrays["validation"], vocab_size=data.vocab_size,
      end_token=data.end_token_id if given is None else given.special.end,
      begin_token=data.begin_token_id if given is None else given.special.begin,
      corpus_sha256=digest.hexdigest(),
      tokenizer_sha256="" if given is None else tokenizer.sha256(given.json),
      tokenizer_path=expanded(data.tokenizer) if data.tokenizer else None,
      description=f"{data.corpus}: {len(arrays['train']):,} train and "
                  f"{len(arrays['validation']):,} validation tokens, "
                  + (data.tokenizer or "tokenizer unknown"))


def _prepared(where: str, path: Path, data: DataConfig) -> Corpus:
  """Opens a folder with meta.json; token ids in the config win over its own."""
  try:
    corpus = open_folder(path)
  except Damaged as damage:
    raise UserError(f"{where}: {damage}; make the folder again with "
                    "python -m experiments.prepare_data --out") from None
  if corpus.vocab_size > data.vocab_size:
    raise UserError(f"{where}: its tokenizer has {corpus.vocab_size} tokens, more than "
                    f"config.data.vocab_size={data.vocab_size}")
  replace = functools.partial(_or, data)
  return Corpus(**{**vars(corpus), "end_token": replace("end_token_id", corpus.end_token),
                   "begin_token": replace("begin_token_id", corpus.begin_token)})


def _or(data: DataConfig, field: str, default: int | None) -> int | None:
  value: int | None = getattr(data, field)
  return default if value is None else value


def _file_of(where: str, folder: Path, part: str) -> Path:
  for suffix in (".bin", ".npy"):
    if (folder / (part + suffix)).is_file():
      return folder / (part + suffix)
  raise UserError(f"{where}: the folder has no {part}.bin or {part}.npy")


def _check(where: str, tokens: Tokens, path: Path, first: int, vocab_size: int,
           digest: Any) -> int | None:
  """Adds the tokens to `digest`, and refuses one outside [0, vocab_size).

  Returns:
    the token that all are, where they are two or more and alike.
  """
  found: set[int] = set()
  for start in range(0, len(tokens), _CHUNK):
    chunk = tokens[start:start + _CHUNK]
    digest.update(chunk.astype("<i8" if chunk.dtype.name == "int64" else "<u4"))
    for worst in (int(chunk.argmax()), int(chunk.argmin())):
      token = int(chunk[worst])
      if not 0 <= token < vocab_size:
        raise UserError(
            f"{where}: token {token} at position {first + start + worst} of {path.name} is not in "
            f"[0, config.data.vocab_size={vocab_size}); set data.vocab_size, or data.token_dtype "
            "of a .bin file" + token_files.advice(path, tokens, vocab_size))
      found.add(token)
  return found.pop() if len(found) == 1 and len(tokens) > 1 else None


def _local(where: str, url: str, cache_dir: str, log: Log) -> Path:
  """Copies what `url` names to the cache, once for each size and time of change of its files."""
  try:
    from etils import epath
    remote = epath.Path(url)
    names = sorted(f.name for f in remote.iterdir()) if remote.is_dir() else []
    known = [f"{part}{suffix}" for part in PARTS for suffix in (".bin", ".npy")]
    files = [remote / n for n in names if n in (*known, META, TOKENIZER)] if names else [remote]
    if not names and not remote.exists():
      raise UserError(f"{where}: no such file or folder")
    stats = [(f.name, f.stat().length, f.stat().mtime) for f in files]
  except UserError:
    raise
  except Exception as error:  # Each cloud's client has errors of its own.
    raise _unreachable(where, error) from None
  key = hashlib.sha256(repr((url, stats)).encode()).hexdigest()
  entry = expanded(cache_dir).absolute() / f"remote-{key[:16]}"
  with cache.writing(cache_dir), cache.locked(entry, log):
    if not entry.exists():
      log(f"{url}: copying {sum(length for _, length, _ in stats) / 1e6:,.0f} MB to {entry}")
      with cache.replacing(entry) as folder:
        for file, (name, length, _) in zip(files, stats):
          _copy(where, file, folder / name, length)
  return entry if names else entry / remote.name


def _copy(where: str, remote: Any, target: Path, length: int) -> None:
  with target.open("wb") as write:
    try:
      with remote.open("rb") as read:
        shutil.copyfileobj(read, write, _CHUNK)
    except Exception as error:
      if isinstance(error, OSError) and error.filename in (None, str(target)):
        raise  # Of the disk, not of the cloud.
      raise _unreachable(where, error) from None
  if target.stat().st_size != length:
    raise UserError(f"{where}: {target.name} ended after {target.stat().st_size} of {length} bytes")


def _unreachable(where: str, error: Exception) -> UserError:
  reason = " ".join(str(error).split())[:200]
  if isinstance(error, ImportError):
    reason += "; run pip install -e '.[gcs]'"
  return UserError(f"{where}: cannot be read: {type(error).__name__}: {reason}")
