"""Compressed files end somewhere: what unpacks to more than a bound is refused before it is."""

import bz2
import gzip
import lzma
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from of_jax.data import compressed, image_files
from of_jax.data.text import NotText


@contextmanager
def at_most(most: int) -> Iterator[None]:
  """Takes care that Python holds no more bytes at once."""
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < most
  finally:
    tracemalloc.stop()


def test_images_unpack_to_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
  """At the bound and one byte above it; and of a real bomb hardly more than the bound is held."""
  monkeypatch.setattr(image_files, "LARGEST", 1000)
  assert image_files.unpack(gzip.compress(bytes(1000))) == bytes(1000)
  with pytest.raises(ValueError, match="unpacks to more than 1,000 bytes"):
    image_files.unpack(gzip.compress(bytes(1001)))
  # Of the same beginning, said to be larger than it is.
  for head in (b"\0\0\x08\x01\xff\xff\xff\xff", b"\0\0\x08\x03" + b"\xff" * 12):
    with pytest.raises(ValueError, match="bytes of data, not the"):
      image_files.read_idx(gzip.compress(head + bytes(9)))


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
  bomb = gzip.compress(gzip.compress(bytes(10)) + bytes(400_000_000), 1)
  monkeypatch.setattr(image_files, "LARGEST", 1_000_000)
  with at_most(50_000_000), pytest.raises(ValueError, match="unpacks to more"):
    image_files.unpack(bomb)


def zstd(content: bytes) -> bytes:
  zstandard = pytest.importorskip("zstandard")
  packed: bytes = zstandard.ZstdCompressor().compress(content)
  return packed


def unpacked(path: Path) -> int:
  with compressed.reading(path) as stream:
    return sum(map(len, iter(lambda: stream.read(1 << 20), b"")))


@pytest.mark.parametrize("ending, pack", [
    (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)])
def test_texts_unpack_to_their_bound(ending: str, pack: Callable[[bytes], bytes], tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
  """Small files may unpack to any number of times their bytes, large ones to 200 times."""
  monkeypatch.setattr(compressed, "_LARGE", 100_000)
  path = tmp_path / f"text.txt{ending}"
  path.write_bytes(pack(b"a" * 100_000))
  assert unpacked(path) == 100_000
  monkeypatch.setattr(compressed, "_MOST_TIMES", 3)
  content = random.Random(0).randbytes(60_000) + bytes(140_000)
  for left_over, size in ((0, 60_000), (300_000, 60_000)):
    path.write_bytes(pack(content + bytes(left_over)))
    assert path.stat().st_size < size * 1.1
    if left_over:
      with pytest.raises(NotText, match="unpacks to more than 3 times its bytes"):
        unpacked(path)
    else:
      monkeypatch.setattr(compressed, "_MOST_TIMES", 200_000 / path.stat().st_size + 0.1)
      assert unpacked(path) == 200_000
      monkeypatch.setattr(compressed, "_MOST_TIMES", 3)


def test_a_bomb_of_zstd_is_not_unpacked(tmp_path: Path) -> None:
  """Refuses zeros of which a piece of 64 KB would unpack to 2 GB at once."""
  path = tmp_path / "text.txt.zst"
  path.write_bytes(zstd(bytes(500_000_000)))
  with at_most(100_000_000), pytest.raises(NotText, match="unpacks to more than 200 times"):
    unpacked(path)
