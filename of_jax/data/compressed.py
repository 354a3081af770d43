"""Compressed files as the bytes that they hold, by the ending of their names.

Enters: a path. Leaves: a stream of bytes to read in pieces, decompressed where its name says so.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from of_jax.data.text import NotText

# Such files were written with windows of up to 2 GB.
_LARGEST_WINDOW = 1 << 31
# Bytes read at a time. Four bytes of zstd may unpack to 131,072, which only then can be counted.
_PIECE = 1 << 10
# What holds more than this and so many times its own bytes is made to fill a disk or a memory: text
# is seldom packed to less than a tenth.
_LARGE, _MOST_TIMES = 1 << 28, 200


class _Bounded(io.RawIOBase):
  """Bytes that are unpacked, until they are too many for what they were packed in."""

  def __init__(self, stream: IO[bytes], path: Path):
    self._stream, self._left = stream, max(_LARGE, _MOST_TIMES * path.stat().st_size)

  def readable(self) -> bool:
    """Says that it can be read."""
    return True

  def readinto(self, buffer: Any) -> int:
    """Fills the buffer with what comes next; returns how many bytes, 0 at the end."""
    found = self._stream.read(len(buffer))
    self._left -= len(found)
    if self._left < 0:
      raise NotText(f"unpacks to more than {_MOST_TIMES} times its bytes; no text does")
    buffer[:len(found)] = found
    return len(found)


class _Zstd(io.RawIOBase):
  """Frames of zstd, one after another, of which the last must be whole."""

  def __init__(self, path: Path):
    try:
      import zstandard
    except ImportError:
      raise NotText("needs the package zstandard; run pip install -e '.[zstd]'") from None
    self._frames = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    self._frame: Any = None
    self._packed, self._text = b"", b""
    self._file = path.open("rb")

  def readable(self) -> bool:
    """Says that it can be read."""
    return True

  def close(self) -> None:
    """Closes the file."""
    if not self.closed:
      self._file.close()
    super().close()

  def readinto(self, buffer: Any) -> int:
    """Fills the buffer with what comes next; returns how many bytes, 0 at the end."""
    while not self._text:
      self._packed = self._packed or self._file.read(_PIECE)
      if not self._packed:
        if self._frame is not None:
          raise EOFError("it ends within a frame")
        return 0
      self._frame = self._frame or self._frames.decompressobj()
      self._text, self._packed = self._frame.decompress(self._packed), b""
      if self._frame.eof:
        self._packed, self._frame = self._frame.unused_data, None
    taken = self._text[:len(buffer)]
    self._text = self._text[len(taken):]
    buffer[:len(taken)] = taken
    return len(taken)


OPENERS: Mapping[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.open(path)),
    ".zst": lambda path: cast(IO[bytes], io.BufferedReader(_Zstd(path), 1 << 20)),
    ".bz2": lambda path: bz2.open(path), ".xz": lambda path: lzma.open(path)}


def inner_name(name: str) -> str:
  """Names what a compressed file holds: a.jsonl of a.jsonl.gz; other names stay."""
  return next((name.removesuffix(ending) for ending in OPENERS if name.endswith(ending)), name)


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
  """Opens what a file holds, to be read in pieces.

  Raises:
    NotText: a file that is not compressed as its name says, or is cut off; or no package for it.
    OSError: the file cannot be read.
  """
  opener = OPENERS.get(path.suffix.lower())
  if opener is None:
    with path.open("rb") as plain:
      yield plain
    return
  try:
    with opener(path) as stream:
      yield io.BufferedReader(_Bounded(stream, path), 1 << 20)
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise  # Of the disk, not of the content.
    raise _damaged(path, error) from None
  except NotText:
    raise
  except Exception as error:
    if type(error).__name__ != "ZstdError":
      raise
    raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> NotText:
  reason = " ".join(str(error).split())[:100] or type(error).__name__
  return NotText(f"is not compressed as {path.suffix}, or cut off: {reason}")
