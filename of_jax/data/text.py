"""Text is its bytes: what makes bytes a text, and what is said of it.

Enters: bytes. Leaves: the text that they spell, as UTF-8, and counts of what is unusual in it. Line
ends, NUL bytes and byte-order marks stay as they are, whatever reads them: a corpus or a flag.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from of_jax.data import signatures

POLICY = "UTF-8; bytes as they are, line ends and byte-order marks too"
# Key in a record -> words, of what may be a slip of whatever wrote the text.
UNUSUAL = {
    "crlf": "CRLF line ends", "lone_cr": "CR without LF", "nul": "NUL bytes",
    "byte_order_marks": "byte-order marks", "replacement_characters": "U+FFFD, which stand for "
    "what another program could not decode"}
# Text of the kinds that hold NUL at all has a few; a file of which they are a tenth is no text.
_NUL_SHARE = 0.1


class NotText(ValueError):
  """Raised for bytes that are no text; the message is why, and what to do, in a few words."""


def decode(raw: bytes) -> str:
  """Decodes UTF-8 and changes nothing.

  Raises:
    NotText: another encoding, or no text at all.
  """
  try:
    text = raw.decode("utf-8")
  except UnicodeDecodeError as error:
    raise NotText(f"not UTF-8 text: {_guess(raw, error.start, error.reason)}") from None
  zeros = raw.count(b"\0")
  if zeros > _NUL_SHARE * len(raw) or signatures.is_tar(raw):
    raise NotText(f"not UTF-8 text: {_guess(raw, raw.find(0))}")
  return text


def count_unusual(text: str) -> Counter[str]:
  """Counts what `UNUSUAL` lists, by its keys; what does not occur has none."""
  crlf = text.count("\r\n")
  return +Counter({
      "crlf": crlf, "lone_cr": text.count("\r") - crlf, "nul": text.count("\0"),
      "byte_order_marks": text.count("\ufeff"), "replacement_characters": text.count("\ufffd")})


def describe_unusual(unusual: Mapping[str, int]) -> str:
  """Says in a few words what `count_unusual` found, or ""."""
  return ", ".join(f"{unusual[key]:,} {words}" for key, words in UNUSUAL.items()
                   if unusual.get(key))


def record(texts: Iterable[str]) -> dict[str, Any]:
  """Makes what a run records of texts that were read: the policy, and counts of the unusual."""
  total: Counter[str] = Counter()
  for text in texts:
    total.update(count_unusual(text))
  return {"policy": POLICY, "unusual": dict(total)}


def _guess(raw: bytes, at: int, reason: str = "") -> str:
  """Guesses what bytes are that are no UTF-8 text from byte `at` on, and says what to do."""
  for mark, encoding in ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"),
                         (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
    if raw.startswith(mark):
      return f"begins with the byte-order mark of {encoding}; {_convert(encoding)}"
  known = signatures.of_bytes(raw)
  if known:
    return f"it is {known.what}; {known.advice}"
  wide = _by_zeros(raw[:4096])
  if wide:
    return f"looks like {wide} without a byte-order mark; {_convert(wide)}"
  zeros = raw.count(b"\0")
  if zeros:
    return f"{zeros:,} of its {len(raw):,} bytes are NUL, as in a binary file"
  line = raw.count(b"\n", 0, at) + 1
  if re.match(b"\xed[\xa0-\xbf][\x80-\xbf]", raw[at:at + 3]):
    return (f"bytes {raw[at:at + 3].hex(' ')} at {at:,}, in line {line:,}, are half a surrogate "
            "pair, which is no character; if it is CESU-8, convert it, else write U+FFFD in place")
  if reason == "unexpected end of data":
    return f"it ends in the middle of a character, at byte {at:,}; it may be cut off"
  return (f"byte {raw[at]:#04x} at {at:,}, in line {line:,}; if it is Latin-1 or Windows-1252, "
          f"{_convert('WINDOWS-1252')}")


def _convert(encoding: str) -> str:
  return f"convert it, as by iconv -f {encoding} -t UTF-8"


def _by_zeros(raw: bytes) -> str | None:
  """Names the wide encoding whose zeros these are, for text that is mostly Latin."""
  wide = {"UTF-32LE": (4, (1, 2, 3)), "UTF-32BE": (4, (0, 1, 2)),
          "UTF-16LE": (2, (1,)), "UTF-16BE": (2, (0,))}
  for encoding, (width, zero) in wide.items():
    columns = [raw[i::width] for i in range(width)]
    shares = [column.count(0) / max(1, len(column)) for column in columns]
    if all((share > 0.7) if i in zero else (share < 0.1) for i, share in enumerate(shares)):
      return encoding
  return None
