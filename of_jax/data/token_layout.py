"""Layouts of headerless tokens: whether bytes that are read as one type were written as another.

Enters: a file's bytes and the type that they are read as. Leaves: what they seem to be, or nothing.

Of tokens that were written as they are read, each of which is above some small number by its own
chance, 24 do not fall into every second place alone, nor do the low bytes of thousands of different
ones all stay below some bound. Such evidence is asked for, so that small vocabularies and padding
pass.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger]

# At most this much is looked at, in pieces that are spread over the file.
_PIECES, _PIECE = 64, 1 << 16
# A high part of at most this is one of a token below a million.
_HIGH = 15
_EVIDENCE = 24
_IMPROBABLE = 1e-9
# Nearly all values that a byte can have.
_MOST_BYTES = 240


@dataclasses.dataclass(frozen=True)
class Suspicion:
  """Type that a file seems to have been written as.

  Attributes:
    written: the type that it was written as.
    reason: what says so.
  """

  written: str
  reason: str


def suspicion(raw: Bytes, width: int) -> Suspicion | None:
  """Tells what bytes seem to have been written as, if it is not unsigned little-endian of `width`.

  Args:
    raw: the bytes of a file, behind its header.
    width: bytes of the type that they are read as, 2 or 4.
  """
  seen = _sample(raw)
  words = seen.view(f"<u{width}")
  return (_floats(seen) or _wider(words, width)
          or (_swapped(words) or _single_bytes(seen) if width == 2 else None))


def fits(raw: Bytes, dtype: str, limit: int) -> bool:
  """Tells whether a sample is whole numbers in [0, limit) when it is read as `dtype`."""
  seen = _sample(raw)
  values = _bfloat16(seen) if dtype == "bfloat16" else seen.view(dtype)
  inside = (values >= 0) & (values < limit)
  return bool(len(values)) and bool((inside & (values == np.floor(values))).all())


def _sample(raw: Bytes) -> Bytes:
  """Copies pieces of the file that begin at multiples of 8 bytes and are whole multiples of 8."""
  if len(raw) <= _PIECES * _PIECE:
    return np.array(raw[:len(raw) // 8 * 8])
  starts = [i * (len(raw) - _PIECE) // (_PIECES - 1) // 8 * 8 for i in range(_PIECES)]
  return np.concatenate([raw[start:start + _PIECE] for start in starts])


def _wider(words: Words, width: int) -> Suspicion | None:
  """Finds tokens of more bytes than `width`, whose high parts are small or signs."""
  for type_width in (8, 4)[:2 if width == 2 else 1]:
    step = type_width // width
    for order, name in (("little", "little-endian"), ("big", "big-endian")):
      given = words if order == "little" else words.byteswap()
      columns = given.reshape(-1, step)
      low, high = ((columns[:, 0], columns[:, 1:]) if order == "little"
                   else (columns[:, -1], columns[:, :-1]))
      signless = high[high != np.iinfo(words.dtype).max]
      top = int(signless.max(initial=0))
      telling = low[low > top]
      if (top <= (_HIGH if type_width == 4 else 0) and len(telling) >= _EVIDENCE
          and len(np.unique(telling)) > 2):
        written = f"int{8 * type_width} or uint{8 * type_width}"
        place = "every second token is" if step == 2 else "of four tokens three are"
        return Suspicion(written if order == "little" else f"{name} {written}",
                         f"{place} {'0' if top == 0 else f'at most {top}'}"
                         + ("" if order == "little" else " with its bytes swapped"))
  return None


def _swapped(words: Words) -> Suspicion | None:
  """Finds uint16 that was written with the high byte first."""
  low, high = (words & 0xFF).astype(np.uint8), (words >> 8).astype(np.uint8)
  written = "big-endian uint16"
  # Beside 0, which pads, a few tokens may be multiples of 256 by chance.
  if not low.any() and (high > 0).sum() >= _EVIDENCE and len(np.unique(high[high > 0])) > 3:
    return Suspicion(written, "every token is a multiple of 256")
  distinct = len(np.unique(words))
  counts = [np.bincount(part, minlength=256) for part in (low, high)]
  largest = int(low.max(initial=0))
  # Ids that are multiples of some number leave out low bytes everywhere, not above a bound.
  if (counts[1] > 0).sum() < _MOST_BYTES or 4 * (counts[0] > 0).sum() < 3 * (largest + 1):
    return None
  if largest < int(high.max()) and ((largest + 1) / 256) ** distinct < _IMPROBABLE:
    return Suspicion(written, f"no low byte is above {largest}, and high bytes are")
  if distinct >= 2000 and _entropy(counts[1]) > _entropy(counts[0]) + 1:
    return Suspicion(written, "its high bytes vary more than its low ones")
  return None


def _single_bytes(seen: Bytes) -> Suspicion | None:
  """Finds tokens of one byte each: low and high bytes are alike, and do not take all values."""
  counts = [np.bincount(seen[i::2], minlength=256)[1:].astype(float) for i in (0, 1)]
  totals = [count.sum() for count in counts]
  if min(totals) < max(1000, 0.1 * len(seen) / 2):
    return None
  a, b = (count / total for count, total in zip(counts, totals))
  kinds = int(((counts[0] + counts[1]) > 0).sum())
  noise = 3 * (kinds / min(totals)) ** 0.5
  if 8 <= kinds <= 200 and np.abs(a - b).sum() / 2 < min(0.1, 0.01 + noise):
    return Suspicion("uint8", "low and high bytes are distributed alike")
  return None


def _floats(seen: Bytes) -> Suspicion | None:
  """Finds whole numbers that were written as floating-point ones."""
  for dtype, name in (("<f8", "float64"), ("<f4", "float32")):
    values = seen.view(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
      whole = (values >= 0) & (values < 1 << 22) & (values == np.floor(values))
    if (whole.all() and (values > 0).sum() >= _EVIDENCE
        and len(np.unique(values[values > 0])) > 2):
      return Suspicion(name, "every number is whole when it is read so")
  words = np.unique(seen.view("<u2"))
  return next((Suspicion(name, "every number is whole when it is read so")
               for name, mantissa, bias in (("float16", 10, 15), ("bfloat16", 7, 127))
               if _whole_halves(words[words > 0].astype(np.int64), mantissa, bias)), None)


def _whole_halves(words: npt.NDArray[np.int64], mantissa: int, bias: int) -> bool:
  """Tells whether different words are whole numbers from 1 as floats of two bytes, by no chance.

  Such a number of so many bits before its point ends in as many zeros as its mantissa has bits
  left. That is evidence, but for the zeros that all have, as multiples of a power of two do.
  """
  exponent = (words >> mantissa) - bias
  point = mantissa - exponent
  zeros = np.log2(words & -words)
  # Above 2 ** 24 there are no ids; float16 ends with infinity, which stands for what is too large.
  whole = (exponent >= 0) & (exponent < min(24, bias + 2)) & (point <= zeros)
  if not whole.all():
    return False
  bits = np.maximum(0, point - zeros.min(initial=mantissa)).sum()
  odd = np.unique(point[(point == zeros) & (point > 0)])
  return bool(bits > -np.log2(_IMPROBABLE) and len(odd) >= 3)


def _bfloat16(seen: Bytes) -> npt.NDArray[np.float32]:
  return (seen.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _entropy(counts: npt.NDArray[np.integer]) -> float:
  """Entropy in bits of values that occur so often."""
  shares = counts[counts > 0] / counts.sum()
  return float(-(shares * np.log2(shares)).sum())
