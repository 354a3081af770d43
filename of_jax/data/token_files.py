"""One file of tokens: what it is, whatever its name says, and its tokens as a memory map.

Enters: the path of a .bin or .npy file. Leaves: its tokens. A .bin file has no header and is of the
type that the config names, but for two whose own files say what they are: a shard as llm.c writes
them, and Megatron's, beside which stands its .idx.
"""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from of_jax.config.paths import check_file
from of_jax.data import signatures, token_layout
from of_jax.data.folder import Tokens
from of_jax.data.npy import open_npy
from of_jax.errors import UserError

Log = Callable[[str], None]

_NPY_TYPES = ("uint16", "uint32", "int32", "int64")
_NPY = f"{', '.join(_NPY_TYPES[:-1])} or {_NPY_TYPES[-1]}"
_HEAD = 1 << 16
# A text of fewer bytes could be tokens.
_SHORTEST_TEXT = 32
# A few tokens could be their own number by chance.
_LEAST_COUNTED = 1000

# llm.c: a header of 256 int32, of which the first three are a magic number, a version and a count.
_LLMC_HEADER = 1024
_LLMC = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
# Megatron: a magic number, a version, a type and two counts, then sizes and offsets.
_MEGATRON = b"MMIDIDX\0\0"
_MEGATRON_TYPES = {4: "int32", 5: "int64", 8: "uint16"}


@dataclasses.dataclass(frozen=True)
class Layout:
  """Place and type of the tokens in a file.

  Attributes:
    dtype: their type, little-endian.
    offset: of the first, in bytes.
    said_by: what said so, or "" where the config did.
  """

  dtype: str
  offset: int
  said_by: str


def load(where: str, path: Path, dtype: str, log: Log) -> Tokens:
  """Opens the file as a memory map [tokens].

  Args:
    where: begins messages: the field that named the file.
    path: a .bin or .npy file.
    dtype: of a .bin file's tokens, uint16 or uint32.
    log: takes a line where a file's own header decides.

  Raises:
    UserError: a file that cannot be read, or does not hold what its name or `dtype` says.
  """
  try:
    if not check_file(f"{where}: {path.name}", path).stat().st_size:
      raise UserError(f"{where}: {path.name} is empty")
    if path.suffix == ".bin":
      return _load_bin(where, path, dtype, log)
    if path.suffix != ".npy":
      raise UserError(f"{where}: {path.name} is neither a .bin nor a .npy file{_seems(path)}")
    array = open_npy(path)
  except OSError as error:
    raise UserError(f"{where}: {path.name} cannot be read: {error.strerror}") from None
  except ValueError as error:
    raise UserError(f"{where}: {path.name} is not a .npy file of numbers, or it is truncated"
                    f"{_seems(path) or f': {error}'}") from None
  if array.ndim != 1 or array.dtype.name not in _NPY_TYPES:
    raise UserError(f"{where}: {path.name} holds {array.dtype.name} of shape {array.shape}; "
                    f"tokens are one-dimensional, of type {', '.join(_NPY_TYPES)}")
  return array


def advice(path: Path, tokens: Tokens, vocab_size: int) -> str:
  """Says as what a .bin file's tokens would be below `vocab_size`, where they are not; or ""."""
  if path.suffix != ".bin":
    return ""
  raw = tokens.view(np.uint8)
  # Widest first: small tokens fit into less, with zeros between them.
  fitting = {
      "int64": "save it as .npy", "uint32": "set config.data.token_dtype=uint32",
      ">u4": "save it as .npy", "uint16": "set config.data.token_dtype=uint16",
      ">u2": "save it as .npy", "float16": f"save its ids as .npy of {_NPY}",
      "bfloat16": f"save its ids as .npy of {_NPY}"}
  for dtype, remedy in fitting.items():
    if dtype != tokens.dtype.name and token_layout.fits(raw, dtype, vocab_size):
      name = dtype if dtype.isalnum() else f"big-endian {np.dtype(dtype).name}"
      return f"; read as {name}, every token would be: if it is that, {remedy}"
  return ""


def _load_bin(where: str, path: Path, dtype: str, log: Log) -> Tokens:
  size = path.stat().st_size
  head = _head(path)
  layout = _by_llmc(where, path, head) or _by_megatron(where, path) or Layout(dtype, 0, "")
  if not layout.said_by:
    _check_kind(where, path, head)
  width = np.dtype(layout.dtype).itemsize
  if not layout.said_by:
    _check_count(where, path, head, size, width)
  if (size - layout.offset) % width:
    raise UserError(f"{where}: {path.name} has {size} bytes, no multiple of the {width} of "
                    f"config.data.token_dtype={dtype}")
  if not layout.said_by:
    seen = token_layout.suspicion(np.memmap(path, np.uint8, "r"), width)
    if seen:
      raise UserError(f"{where}: {path.name} seems to hold {seen.written}, not {dtype}: "
                      f"{seen.reason}; {_remedy(seen.written, dtype)}")
  else:
    log(f"{where}: {path.name} is read as {layout.dtype}, as {layout.said_by} says")
  return np.memmap(path, np.dtype(layout.dtype).newbyteorder("<"), "r", layout.offset)


def _remedy(written: str, dtype: str) -> str:
  """Says what to do with a file of another type."""
  if written == "int32 or uint32" and dtype == "uint16":
    return (f"set config.data.token_dtype=uint32, or if it is {dtype} all the same, save it as "
            ".npy, which names its type")
  return f"save it as .npy of {_NPY}, which names its type, also if it is {dtype} all the same"


def _check_kind(where: str, path: Path, head: bytes) -> None:
  """Refuses a file that begins as other kinds of files do."""
  known = signatures.of_bytes(head)
  if known:
    raise UserError(f"{where}: {path.name} is not headerless tokens: it is {known.what}; "
                    f"{known.advice}")
  if len(head) >= _SHORTEST_TEXT and signatures.is_text(head):
    what = "JSON" if head.lstrip()[:1] in (b"{", b"[") else "text"
    raise UserError(f"{where}: {path.name} is not headerless tokens: it is {what}; save "
                    "token ids as .npy, and give text by text:FILE")


def _check_count(where: str, path: Path, head: bytes, size: int, width: int) -> None:
  """Refuses a file that begins with how many tokens or bytes follow, in more bytes than a token."""
  for length in (4, 8):
    count, rest = int.from_bytes(head[:length], "little"), size - length
    if length > width and rest >= _LEAST_COUNTED and count in (rest, rest / width):
      what = "bytes" if count == rest else "tokens"
      raise UserError(f"{where}: {path.name} is not headerless tokens: its first {length} bytes "
                      f"say that {count:,} {what} follow, which is so; save the token ids alone, "
                      "or as .npy")


def _by_llmc(where: str, path: Path, head: bytes) -> Layout | None:
  """Reads the header of a shard as llm.c writes them."""
  if len(head) < 12:
    return None
  magic, version, count = struct.unpack("<3i", head[:12])
  if magic not in {known for known, _ in _LLMC} or not 0 < version < 100:
    return None
  dtype = _LLMC.get((magic, version))
  if dtype is None:
    raise UserError(f"{where}: {path.name} has a header of llm.c of version {version}, which is "
                    f"not known here; save its tokens as .npy")
  held = (path.stat().st_size - _LLMC_HEADER) / np.dtype(dtype).itemsize
  if held != count:
    raise UserError(f"{where}: {path.name} has a header of llm.c that says {count:,} tokens of "
                    f"{dtype}, and holds {max(0, held):,.10g}; it is cut off or damaged")
  return Layout(dtype, _LLMC_HEADER, "its header of llm.c")


def _by_megatron(where: str, path: Path) -> Layout | None:
  """Reads the type of Megatron's tokens from the .idx file beside them."""
  index = path.with_suffix(".idx")
  if not index.is_file():
    return None
  with index.open("rb") as file:
    if file.read(len(_MEGATRON)) != _MEGATRON:
      return None
    head = file.read(25)
    if len(head) < 25:
      raise UserError(f"{where}: {index.name}, the index of {path.name}, is cut off")
    version, code, sequences, _ = struct.unpack("<QBQQ", head)
    sizes = np.frombuffer(file.read(4 * sequences), "<i4") if sequences <= 1 << 40 else None
  dtype = _MEGATRON_TYPES.get(code)
  if version != 1 or dtype is None or sizes is None or len(sizes) != sequences:
    raise UserError(f"{where}: {index.name}, the index of {path.name}, is of version {version} and "
                    f"type {code} with {sequences:,} sequences, or cut off; read are version 1 of "
                    f"{', '.join(_MEGATRON_TYPES.values())}; save the tokens as .npy")
  expected = int(sizes.sum(dtype=np.int64)) * np.dtype(dtype).itemsize
  if path.stat().st_size != expected:
    raise UserError(f"{where}: {path.name} has {path.stat().st_size:,} bytes, and its index "
                    f"{index.name} says {expected:,}; one of them is cut off or not its own")
  return Layout(dtype, 0, f"its index {index.name} of Megatron")


def _head(path: Path) -> bytes:
  with path.open("rb") as file:
    return file.read(_HEAD)


def _seems(path: Path) -> str:
  """Says what the file is, unless it is what its name says."""
  known = signatures.of_bytes(_head(path))
  if known is None or known.advice == f"give it the name {path.suffix}":
    return ""
  return f": it is {known.what}; {known.advice}"
