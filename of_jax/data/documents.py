"""Documents, and the rules by which some are held out for validation.

Enters: what a source found. Leaves: two sequences of documents whose text is read when asked for.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# A text longer than this is tokenised in pieces, for one call's memory is many times its text.
PIECE_CHARACTERS = 1 << 20
# Holding out stops this close to the share asked for, or a tail of tiny files would follow.
_NEAR_ENOUGH = 0.95


@dataclasses.dataclass(frozen=True)
class Document:
  """Text of a corpus that is kept or held out as a whole and ends with one end token.

  Attributes:
    name: unique in its corpus; part of the corpus hash.
    size: bytes as UTF-8; 0 where only reading would tell.
    read: reads and returns the text.
  """

  name: str
  size: int
  read: Callable[[], str]


@dataclasses.dataclass(frozen=True)
class Split:
  """Documents to train on and to validate on.

  Attributes:
    train, validation: the documents, read when asked for.
    rule: how they were told apart, in words.
  """

  train: Sequence[Document]
  validation: Sequence[Document]
  rule: str


@dataclasses.dataclass(frozen=True)
class Source:
  """A corpus before it is tokenised.

  Attributes:
    name: as the config has it.
    fingerprint: changes whenever the documents would; cheap, for every opening computes it.
    split: reads or downloads what `fingerprint` did not need, and holds out the fraction given.
    record: what a run records of how the texts were found, beside what it records of every text.
  """

  name: str
  fingerprint: str
  split: Callable[[float], Split]
  record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def hold_out(sizes: Mapping[str, int], fraction: float) -> set[str]:
  """Chooses the names to validate on: at most `fraction` of the bytes, near it if sizes allow.

  Args:
    sizes: name -> bytes.
    fraction: share of all bytes, from 0 to 1.

  Names are walked in the order of their sha256 and taken while they fit, so the choice depends
  on names and sizes alone, never on a random state or on the order of a directory.
  """
  target = fraction * sum(sizes.values())
  held: set[str] = set()
  total = 0
  for name in sorted(sizes, key=lambda name: hashlib.sha256(encode_name(name)).digest()):
    if total >= _NEAR_ENOUGH * target:
      break
    if total + sizes[name] <= target:
      held.add(name)
      total += sizes[name]
  return held


def held_out(count: int, fraction: float) -> list[int]:
  """Chooses about `fraction` of range(count), by the sha256 of each number; ascending."""
  limit = int(fraction * 2 ** 64)
  return [i for i in range(count)
          if int.from_bytes(hashlib.sha256(str(i).encode()).digest()[:8], "big") < limit]


def encode_name(name: str) -> bytes:
  """Encodes a file's name as bytes, even a name that is not valid UTF-8."""
  return name.encode("utf-8", "surrogateescape")


def pieces(text: str) -> Iterator[str]:
  """Cuts `text` into parts of about a million characters, at the ends of lines where there are."""
  start = 0
  while len(text) - start > PIECE_CHARACTERS:
    end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1
    end = end if end > start else start + PIECE_CHARACTERS
    yield text[start:end]
    start = end
  yield text[start:]


def evenly(length: int) -> Iterator[int]:
  """Yields all of range(length) in an order whose every beginning is spread over the range.

  The order is that of the numbers with their bits reversed.
  """
  bits = (length - 1).bit_length() if length > 1 else 0
  for i in range(1 << bits):
    reversed_bits = int(format(i, f"0{bits}b")[::-1], 2) if bits else 0
    if reversed_bits < length:
      yield reversed_bits


def sample(documents: Sequence[Document], limit: int) -> Iterator[str]:
  """Yields evenly chosen pieces of text, `limit` bytes in all or everything if there is less."""
  total = 0
  for i in evenly(len(documents)):
    parts = list(pieces(documents[i].read()))
    for j in evenly(len(parts)):
      if total >= limit:
        return
      total += len(parts[j].encode("utf-8"))
      yield parts[j]
