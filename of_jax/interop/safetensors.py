"""Reader of safetensors files. Enters: a path. Leaves: names, types, shapes, and arrays on demand.

A file is eight bytes that give the header's length, a JSON header, and raw numbers. Everything the
header says is checked against the file's size before a byte is read, and nothing in it can be run.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.config.paths import check_file
from of_jax.errors import UserError
from of_jax.interop.settings import parse_object
from of_jax.interop.tensors import Span

# A quarter of the format's own limit: its entries take thirty times as much memory as their text.
# The header of a model of a thousand billion parameters has about a tenth.
_LARGEST_HEADER = 25_000_000
_MOST_AXES = 8
_ITEM_SIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
              "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
# What else is found under that name, by its first bytes.
_IMPOSTORS = ((b"\x80", "a pickle, which could run code and is never opened"),
              (b"PK\x03\x04", "a zip archive, as of torch.save, which could run code and is never "
               "opened"),
              (b"GGUF", "a GGUF file; name it .gguf"),
              (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
              (b"<", "a web page"))


@dataclasses.dataclass(frozen=True)
class Entry(Span):
  """Tensor of a file."""

  def load(self, name: str) -> np.ndarray:
    """Reads the array in float32, exact for BF16 and F16.

    Raises:
      UserError: not of floating point, or a file that has changed.
    """
    if self.dtype not in _FLOATS and self.dtype != "BF16":
      raise UserError(f"{self.path}: {name} is of type {self.dtype}; parameters must be F32, F16, "
                      "BF16 or F64")
    content = self.content(name)
    if self.dtype == "BF16":
      # The upper half of a float32.
      wide = np.frombuffer(content, "<u2").astype(np.uint32) << 16
      return wide.view(np.float32).reshape(self.shape)
    return np.frombuffer(content, _FLOATS[self.dtype]).astype(np.float32).reshape(self.shape)


def read_header(path: Path) -> dict[str, Entry]:
  """Reads a file's header: its tensors by name.

  Raises:
    UserError: not a safetensors file, or one whose header and size disagree.
  """
  if path.exists():
    check_file(str(path), path)
  try:
    size = path.stat().st_size
    with path.open("rb") as file:
      start = file.read(32)
      length = int.from_bytes(start[:8], "little")
      if len(start) < 10 or start[8:9] != b"{":
        what = next((f"; it begins as {kind}" for magic, kind in _IMPOSTORS
                     if start.startswith(magic)), "")
        raise UserError(f"{path}: not a safetensors file{what}")
      if length > min(_LARGEST_HEADER, size - 8):
        raise UserError(f"{path}: its header claims {length:,} bytes, the file has {size:,} and a "
                        f"header at most {_LARGEST_HEADER:,}: truncated, or not a safetensors file")
      file.seek(8)
      content = file.read(length)
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror}") from None
  header = parse_object(content, f"{path}: not a safetensors file: its header is")
  header.pop("__metadata__", None)
  entries = {name: _entry(path, name, fields, 8 + length, size) for name, fields in header.items()}
  _check_cover(path, entries, 8 + length, size)
  return entries


def _entry(path: Path, name: str, fields: Any, offset: int, size: int) -> Entry:
  def require(condition: bool, what: str) -> None:
    if not condition:
      raise UserError(f"{path}: tensor {name[:80]!r}: {what}")

  require(isinstance(fields, dict) and {"dtype", "shape", "data_offsets"} <= fields.keys(),
          "its header entry lacks dtype, shape or data_offsets")
  dtype, shape, offsets = (fields[key] for key in ("dtype", "shape", "data_offsets"))
  require(isinstance(dtype, str) and dtype in _ITEM_SIZE, f"unknown type {str(dtype)[:20]}")
  require(_counts(shape), f"its shape {str(shape)[:60]} is not a list of sizes")
  require(len(shape) <= _MOST_AXES, f"has {len(shape):,} axes; read are at most {_MOST_AXES}")
  require(_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1],
          f"its data_offsets {str(offsets)[:60]} are not two rising positions")
  start, stop = (offset + n for n in offsets)
  require(stop <= size, f"ends at byte {stop:,} of a file of {size:,}: the file is truncated")
  wanted = math.prod(shape) * _ITEM_SIZE[dtype]
  require(stop - start == wanted,
          f"{dtype} of shape {tuple(shape)} takes {wanted:,} bytes, its data_offsets span "
          f"{stop - start:,}")
  return Entry(path, dtype, tuple(shape), start, stop)


def _counts(value: Any) -> bool:
  return isinstance(value, list) and all(
      type(n) is int and 0 <= n < 1 << 63 for n in value)


def _check_cover(path: Path, entries: dict[str, Entry], offset: int, size: int) -> None:
  """Checks that tensors cover the data without gap or overlap, as the format asks."""
  for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
    if entry.start != offset:
      raise UserError(f"{path}: tensor {name[:80]!r} begins at byte {entry.start:,} where "
                      f"{offset:,} would follow the one before: overlap or gap")
    offset = entry.stop
  if offset != size:
    raise UserError(f"{path}: {size - offset:,} bytes follow the last tensor; not what the header "
                    "describes")
