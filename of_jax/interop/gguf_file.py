"""Reader of GGUF files. Enters: a path. Leaves: its metadata, and its tensors on demand.

Every count and length is checked against the file's size before anything is made of it: the
`gguf` package, whose own reader does not, is used to dequantise alone.
"""

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.config.paths import check_file
from of_jax.errors import UserError
from of_jax.interop.tensors import Span

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Type numbers of the format -> NumPy types; 8 is a string, 9 an array.
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
            10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_MOST_AXES = 4


@dataclasses.dataclass(frozen=True)
class GGUFTensor(Span):
  """Tensor of a file; its type is named as in ggml."""

  def load(self, name: str) -> np.ndarray:
    """Reads the array in float32, dequantised."""
    gguf = _import_gguf()
    rows = np.frombuffer(self.content(name), np.uint8).reshape(*self.shape[:-1], -1)
    kind = gguf.GGMLQuantizationType[self.dtype]
    if self.dtype in ("F32", "F16", "F64"):
      rows = rows.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[self.dtype])
      return np.array(rows, np.float32).reshape(self.shape)
    try:
      array = gguf.quants.dequantize(rows, kind)
    except NotImplementedError:
      raise UserError(f"{self.path}: {name} is of type {self.dtype}, which the gguf package does "
                      "not dequantise") from None
    return np.array(array, np.float32).reshape(self.shape)


def read(path: Path) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
  """Reads metadata (numbers, texts, lists and arrays by key) and tensors by name.

  Raises:
    UserError: not a GGUF file of a version known here, or one that ends too early.
  """
  check_file(str(path), path)
  try:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      return _Reader(path, content).read()
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror}") from None
  except ValueError as error:  # An empty file cannot be mapped; text may be no UTF-8.
    raise UserError(f"{path}: not a GGUF file: {str(error)[:80]}") from None


class _Reader:
  """Position in a file, which can only move within it."""

  def __init__(self, path: Path, content: mmap.mmap):
    self.path, self.content, self.at = path, content, 0

  def read(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    if self.take(4) != _MAGIC:
      raise UserError(f"{self.path}: not a GGUF file: it does not begin with {_MAGIC.decode()}")
    version = self.number("<I")
    if version not in _VERSIONS:
      raise UserError(f"{self.path}: GGUF version {version}; versions 2 and 3 are read, "
                      "little-endian alone")
    tensors, fields = self.number("<Q"), self.number("<Q")
    # The shortest field takes 13 bytes, the shortest tensor's entry 24.
    self.require(13 * fields + 24 * tensors)
    metadata: dict[str, Any] = {}
    for _ in range(fields):
      key = self.text()
      metadata[key] = self.value(self.number("<I"))
    infos = [(self.text(), self.shape(), self.number("<I"), self.number("<Q"))
             for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2 ** 20:
      raise UserError(f"{self.path}: general.alignment={alignment}: must be 1 to 1048576")
    base = math.ceil(self.at / alignment) * alignment
    found: dict[str, GGUFTensor] = {}
    for name, shape, kind, offset in infos:
      if name in found:
        raise UserError(f"{self.path}: two tensors named {name[:80]!r}")
      found[name] = self.tensor(name, shape, kind, base + offset)
    return metadata, found

  def tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> GGUFTensor:
    gguf = _import_gguf()
    try:
      dtype = gguf.GGMLQuantizationType(kind)
    except ValueError:
      raise UserError(f"{self.path}: tensor {name[:80]!r} is of type {kind}, which the gguf "
                      "package does not know") from None
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    if not shape or shape[-1] % block:
      raise UserError(f"{self.path}: tensor {name[:80]!r} of shape {shape} is not whole blocks of "
                      f"{block}, as {dtype.name} asks")
    stop = start + math.prod(shape) // block * size
    if stop > len(self.content):
      raise UserError(f"{self.path}: tensor {name[:80]!r} ends at byte {stop:,} of a file of "
                      f"{len(self.content):,}: the file is truncated")
    return GGUFTensor(self.path, dtype.name, shape, start, stop)

  def shape(self) -> tuple[int, ...]:
    axes = self.number("<I")
    if axes > _MOST_AXES:
      raise UserError(f"{self.path}: a tensor of {axes} axes; GGUF has at most {_MOST_AXES}")
    return tuple(self.number("<Q") for _ in range(axes))[::-1]

  def value(self, kind: int, depth: int = 0) -> Any:
    if kind in _SCALARS:
      return np.frombuffer(self.take(np.dtype(_SCALARS[kind]).itemsize), _SCALARS[kind])[0].item()
    if kind == _STRING:
      return self.text()
    if kind != _ARRAY or depth > 2:
      raise UserError(f"{self.path}: a value of type {kind} at byte {self.at:,}; not a GGUF file, "
                      "or damaged")
    inner, count = self.number("<I"), self.number("<Q")
    if inner in _SCALARS:
      dtype = np.dtype(_SCALARS[inner])
      return np.frombuffer(self.take(count * dtype.itemsize), dtype).copy()
    self.require(8 * count)
    return [self.value(inner, depth + 1) for _ in range(count)]

  def text(self) -> str:
    return self.take(self.number("<Q")).decode("utf-8")

  def number(self, form: str) -> int:
    return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

  def take(self, count: int) -> bytes:
    self.require(count)
    self.at += count
    return self.content[self.at - count:self.at]

  def require(self, count: int) -> None:
    if count > len(self.content) - self.at:
      raise UserError(f"{self.path}: asks for {count:,} bytes at byte {self.at:,} of a file of "
                      f"{len(self.content):,}: truncated, or not a GGUF file")


def _import_gguf() -> Any:
  try:
    import gguf
  except ImportError:
    raise UserError("GGUF files need the package gguf: pip install 'of_jax[interop]'") from None
  return gguf
