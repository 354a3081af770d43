"""Files of images as arrays: idx files as MNIST's, and CIFAR-10's batches of either version.

Enters: paths. Leaves: uint8 images [count, entries] and their labels [count]. Raises ValueError
with a few words where a file is not what it should be.
"""

import gzip
import io
import math
import pickle
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

CIFAR10_ENTRIES = 3 * 32 * 32
# No file of these corpora has a tenth of it.
LARGEST = 500_000_000


def read_idx(raw: bytes) -> Bytes:
  """Reads an idx file of unsigned bytes, gzipped or not: a magic number, the sizes, the bytes.

  Returns:
    uint8 of the shape that the file says.

  Raises:
    ValueError: not such a file, or a damaged one.
  """
  if raw[:2] == b"\x1f\x8b":
    raw = unpack(raw)
  end = 4 + 4 * raw[3] if len(raw) >= 4 else 4
  if raw[:3] != b"\0\0\x08" or not 4 < end <= min(16, len(raw)):
    raise ValueError("is not an idx file of bytes")
  sizes = [int(size) for size in np.frombuffer(raw[4:end], ">u4")]
  if len(raw) - end != math.prod(sizes):
    raise ValueError(f"has {len(raw) - end:,} bytes of data, not the {math.prod(sizes):,} that "
                     "its head says")
  return np.frombuffer(raw, np.uint8, offset=end).reshape(sizes)


def unpack(raw: bytes) -> bytes:
  """Unpacks gzip, up to LARGEST bytes. Raises ValueError for what is damaged or larger."""
  try:
    with gzip.open(io.BytesIO(raw)) as stream:
      found = stream.read(LARGEST + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(f"is damaged: {error}") from None
  if len(found) > LARGEST:
    raise ValueError(f"unpacks to more than {LARGEST:,} bytes")
  return found


def read_idx_pair(images: bytes, labels: bytes) -> tuple[Bytes, Labels]:
  """Reads images [count, entries] and labels [count] from two idx files.

  Raises:
    ValueError: not such files, or of counts that differ.
  """
  pixels, named = read_idx(images), read_idx(labels)
  if pixels.ndim != 3 or named.ndim != 1 or len(pixels) != len(named):
    raise ValueError(f"holds images of shape {pixels.shape} and labels of shape {named.shape}")
  return pixels.reshape(len(pixels), -1), named.astype(np.int64)


def read_cifar10_binary(raw: bytes) -> tuple[Bytes, Labels]:
  """Reads a batch of CIFAR-10's binary version: a byte of label and 3,072 of pixels an image.

  Returns:
    Images [count, 3072] and labels [count].

  Raises:
    ValueError: a number of bytes that is no multiple of an image's.
  """
  if not raw or len(raw) % (1 + CIFAR10_ENTRIES):
    raise ValueError(f"has {len(raw):,} bytes, no multiple of {1 + CIFAR10_ENTRIES:,}")
  rows = np.frombuffer(raw, np.uint8).reshape(-1, 1 + CIFAR10_ENTRIES)
  return rows[:, 1:], rows[:, 0].astype(np.int64)


def read_cifar10_python(raw: bytes) -> tuple[Bytes, Labels]:
  """Reads a batch of CIFAR-10's Python version: a pickled dictionary with `data` and `labels`.

  The pickle may build arrays and nothing else, for a pickle can run any code.

  Returns:
    Images [count, 3072] and labels [count].

  Raises:
    ValueError: not such a batch.
  """
  try:
    batch = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
  except pickle.UnpicklingError as error:
    raise ValueError(f"is not a CIFAR-10 batch: {error}") from None
  except Exception as error:  # A damaged pickle can raise anything.
    raise ValueError(f"is not a CIFAR-10 batch: {type(error).__name__}") from None
  found = {str(key, "ascii") if isinstance(key, bytes) else key: value
           for key, value in batch.items()} if isinstance(batch, dict) else {}
  pixels, labels = found.get("data"), found.get("labels")
  if (not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2
      or pixels.shape[1] != CIFAR10_ENTRIES or not isinstance(labels, list)
      or len(labels) != len(pixels)):
    raise ValueError("is not a CIFAR-10 batch: it needs data, uint8 [images, 3072], and labels")
  return pixels, np.asarray(labels, np.int64)


class _ArraysOnly(pickle.Unpickler):

  def find_class(self, module: str, name: str) -> Any:
    # NumPy 1 and 2 name the module of the first differently.
    if (module, name) in (("numpy.core.multiarray", "_reconstruct"),
                          ("numpy._core.multiarray", "_reconstruct")):
      return np.zeros(0).__reduce__()[0]
    if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
      return getattr(np, name)
    if (module, name) == ("_codecs", "encode"):
      import _codecs
      return _codecs.encode
    raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_bytes(path: Path) -> bytes:
  """Reads a file's content.

  Raises:
    ValueError: it is missing, too large, or cannot be read.
  """
  try:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
      raise ValueError("is no file")
    if found.st_size > LARGEST:
      raise ValueError(f"has more than {LARGEST:,} bytes")
    return path.read_bytes()
  except FileNotFoundError:
    raise ValueError("is missing") from None
  except OSError as error:
    raise ValueError(f"cannot be read: {error.strerror or error}") from None
