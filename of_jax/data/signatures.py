"""Kinds of files by their first bytes: what a file is, whatever its name says.

Enters: a file's beginning. Leaves: its kind in words and what to do with it.
"""

import codecs
import dataclasses
import pickletools
import re
import zlib


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of file.

  Attributes:
    what: its name with an article.
    advice: what to do with it, an imperative.
  """

  what: str
  advice: str


_UNPACK = "unpack it first"
_EXTRACT = "write what it holds as text or as token ids first"
# Four bytes and more each: fewer could be the beginning of anything.
_BEGINNINGS = (
    (b"\x93NUMPY", Kind("a NumPy array (.npy)", "give it the name .npy")),
    (b"PK\x03\x04", Kind("a zip archive, such as .npz or PyTorch's .pt", _UNPACK)),
    (b"PK\x05\x06", Kind("an empty zip archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("compressed by zstd", _UNPACK)),
    (b"\xfd7zXZ\0", Kind("compressed by xz", _UNPACK)),
    (b"\x04\x22\x4d\x18", Kind("compressed by lz4", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK)),
    (b"MMIDIDX\0\0", Kind("the index of a Megatron data set (.idx)",
                          "give the .bin file beside it, and leave this one its name")),
    (b"LITPKDS", Kind("a packed data set of LitGPT, with a header of its own",
                      "save the token ids alone as .npy")),
    (b"TNTIDX\0\0", Kind("the index of a fairseq data set (.idx)", _EXTRACT)),
    (b"GGUF", Kind("a model's weights (GGUF)", "give it by --model")),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", _EXTRACT)),
    (b"PAR1", Kind("a Parquet file", _EXTRACT)),
    (b"ARROW1", Kind("an Arrow file", _EXTRACT)),
    (b"FEA1", Kind("a Feather file", _EXTRACT)),
    (b"Obj\x01", Kind("an Avro file", _EXTRACT)),
    (b"Rar!\x1a\x07", Kind("a RAR archive", _UNPACK)),
    (b"SQLite format 3\0", Kind("an SQLite database", _EXTRACT)),
    (b"%PDF-", Kind("a PDF document", _EXTRACT)),
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG image", "leave it out")),
    (b"\xff\xd8\xff\xe0", Kind("a JPEG image", "leave it out")),
    (b"\x7fELF", Kind("a program", "leave it out")),
)
_SAFETENSORS = Kind("a model's weights (safetensors)", "give its folder by --model")
# Their marks are days of 2024, each followed by a small version.
_LLMC = {
    20240326: Kind("a model's weights as llm.c writes them", "convert it to safetensors"),
    20240327: Kind("llm.c's activations for debugging", "leave it out"),
    20240328: Kind("a tokenizer as llm.c writes it", "leave it out"),
    20240522: Kind("an evaluation set as llm.c writes it", "leave it out"),
    20240527: Kind("the state of a run of llm.c", "leave it out")}
_GZIP = Kind("compressed by gzip", _UNPACK)
_ZLIB = Kind("compressed by zlib", _UNPACK)
_BZIP2 = Kind("compressed by bzip2", _UNPACK)
_TAR = Kind("a tar archive", _UNPACK)
_PICKLE = Kind("a Python pickle, such as PyTorch's older .pt", _EXTRACT)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_BZIP2_BLOCK = re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")


def of_bytes(head: bytes) -> Kind | None:
  """Names the kind of file that begins with `head`, of some kilobytes; None where none is known.

  Two bytes may be anything: where a kind's mark is that short, what follows must agree.
  """
  for beginning, kind in _BEGINNINGS:
    if head.startswith(beginning):
      return kind
  if head[:3] == b"\x1f\x8b\x08" and not head[3] & 0xE0 and _inflates(head):
    return _GZIP
  if _is_zlib(head):
    return _ZLIB
  if _BZIP2_BLOCK.match(head):
    return _BZIP2
  if is_tar(head):
    return _TAR
  mark, version = (int.from_bytes(head[i:i + 4], "little") for i in (0, 4))
  if mark in _LLMC and 0 < version < 100:
    return _LLMC[mark]
  if head[8:10] == b'{"' and 2 < int.from_bytes(head[:8], "little") < 1 << 30:
    return _SAFETENSORS
  return _PICKLE if _unpickles(head) else None


def is_tar(head: bytes) -> bool:
  """Tells whether these are the first bytes of a tar archive."""
  return head[257:262] == b"ustar"


def is_text(head: bytes) -> bool:
  """Tells whether bytes are UTF-8, perhaps cut at their end, without control characters."""
  try:
    text = codecs.getincrementaldecoder("utf-8")().decode(head)
  except UnicodeDecodeError:
    return False
  return not _CONTROL.search(text)


def _inflates(head: bytes) -> bool:
  try:
    return bool(zlib.decompressobj(31).decompress(head, 1 << 20))
  except zlib.error:
    return False


def _is_zlib(head: bytes) -> bool:
  """Tells whether bytes are zlib's, whose mark may be a token: they unpack to their checksum, or
  kilobytes of them do without a fault."""
  if head[:1] != b"\x78" or int.from_bytes(head[:2], "big") % 31:
    return False
  stream = zlib.decompressobj()
  try:
    return bool(stream.decompress(head)) and (stream.eof or len(head) >= 1 << 12)
  except zlib.error:
    return False


def _unpickles(head: bytes) -> bool:
  """Tells whether many instructions of a pickle follow its mark."""
  if head[:1] != b"\x80" or head[1:2] not in (b"\2", b"\3", b"\4", b"\5"):
    return False
  count = 0
  try:
    for count, (opcode, _, _) in enumerate(pickletools.genops(head)):
      if opcode.name == "STOP":
        break
  except Exception:  # Bytes that are no pickle raise anything; a pickle that was cut, ValueError.
    pass
  return count >= 8
