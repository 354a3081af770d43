"""Ways to damage a file's content: by bytes, by the structure of its JSON, whole."""

import gzip
import json
import random
import struct
from typing import Any

# JSON that no writer meant: values of another kind, numbers out of range, depth, length.
ODD = ("{}", "[]", "7", "-1", "0", '""', "null", "true", "1e999", "-1e999", "NaN",
       "1" + "0" * 400, "-" + "9" * 30, "2147483648", "0.5", '"x"', '"\\ud800"', '"\\u0000"',
       '"' + "a" * 3_000 + '"',
       "[" * 5_000 + "]" * 5_000, '{"a":' * 3_000 + "1" + "}" * 3_000, "[[]]", "[{}]",
       "[1,2,3]", '["a"]', '{"a": 1}')
_LONG = '"' + "a" * 300_000 + '"', "[" * 100_000, json.dumps(list(range(100_000)))


def of_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
  """Damages bytes in one of the ways that disks, networks and people do; says which."""
  way = rng.choice(("flip", "flip", "flip", "cut", "cut", "swap", "zero", "double", "junk", "head",
                    "whole"))
  data, size = bytearray(content), max(1, len(content))
  if way == "flip":
    # The beginning says what follows, so it is hit more often.
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
      at = rng.randrange(min(size, 400)) if rng.random() < 0.6 else rng.randrange(size)
      if data:
        data[at] ^= 1 << rng.randrange(8)
  elif way == "cut":
    del data[rng.choice((0, 1, 7, 8, 10, rng.randrange(size), rng.randrange(min(size, 200)))):]
  elif way == "swap":
    a, b = rng.randrange(size), rng.randrange(size)
    data[a:a + 16], data[b:b + 16] = data[b:b + 16], data[a:a + 16]
  elif way == "zero":
    at, length = rng.randrange(size), rng.choice((1, 8, 64, 1024))
    data[at:at + length] = bytes(len(data[at:at + length]))
  elif way == "double":
    at = rng.randrange(size)
    data[at:at] = data[at:at + rng.choice((1, 8, 64))]
  elif way == "junk":
    data += rng.randbytes(rng.choice((1, 2, 3, 1000)))
  elif way == "head":
    at = rng.randrange(min(size, 64))
    data[at:at + 8] = struct.pack("<Q", rng.choice((0, 1, 2 ** 31, 2 ** 40, 2 ** 63, 2 ** 64 - 1)))
  else:
    data = bytearray(rng.choice((b"", b"\0", b"\n", rng.randbytes(300), b"{}", b"[]", b"7",
                                 b"<html>no such page</html>", b"\x80\x04N.", b"PK\3\4" + bytes(40),
                                 b"\x93NUMPY", b"GGUF\3\0\0\0" + b"\xff" * 16,
                                 gzip.compress(bytes(1000)), "text".encode("utf-16"))))
  return way, bytes(data)


def of_json(content: bytes, rng: random.Random) -> tuple[str, bytes]:
  """Replaces, doubles or takes away one node of a JSON text; or damages its bytes."""
  if rng.random() < 0.2:
    return of_bytes(content, rng)
  odd = rng.choice(ODD if rng.random() < 0.9 else _LONG)
  if rng.random() < 0.1:
    return f"whole {odd[:20]}", odd.encode()
  value = json.loads(content)
  places: list[tuple[Any, Any]] = []

  def walk(node: Any, depth: int) -> None:
    children = (list(node.items()) if isinstance(node, dict)
                else list(enumerate(node)) if isinstance(node, list) else [])
    for key, child in children:
      # Of long lists a few: the rest are alike.
      if not isinstance(node, list) or key < 3 or rng.random() < 0.05:
        # What is near the root is hit as often as the many leaves.
        places.extend([(node, key)] * (8 if depth < 2 else 1))
        walk(child, depth + 1)

  walk(value, 0)
  if not places:
    return f"whole {odd[:20]}", odd.encode()
  node, key = rng.choice(places)
  mark = "\1odd\1"
  way = rng.choice(("replace",) * 6 + ("remove", "rename", "wrap"))
  if way == "replace":
    node[key] = mark
  elif way == "remove":
    del node[key]
  elif way == "wrap":
    node[key] = [node[key]]
  elif isinstance(node, dict):
    node[str(key) + "_"] = node.pop(key)
  text = json.dumps(value).replace(json.dumps(mark), odd)
  return f"{way} {key} {odd[:20] if way == 'replace' else ''}", text.encode()


def of_json_lines(content: bytes, rng: random.Random) -> tuple[str, bytes]:
  """Damages one line of JSON lines."""
  lines = content.splitlines()
  at = rng.randrange(len(lines))
  way, lines[at] = of_json(lines[at], rng)
  return f"line {at}: {way}", b"\n".join(lines) + b"\n"


def of_npy(content: bytes, rng: random.Random) -> tuple[str, bytes]:
  """Writes another head for the numbers of a .npy file; or damages its bytes."""
  if rng.random() < 0.5:
    return of_bytes(content, rng)
  shape = rng.choice(("()", "(0,)", "(-1,)", "(4,)", "(10**30,)", "(2**63,)", "(1e9,)", "(True,)",
                      "('a',)", "(4, 4, 4)", "(" * 3_000, "(1,)" * 2_000, "None", "(500,)", "1"))
  kind = rng.choice(("'<i4'", "'<u2'", "'O'", "'|V8'", "'<f8'", "'<M8[s]'", "'>u4'", "'<U9999999'",
                     "[('a', '<i4')]", "None", "'" + "i" * 500 + "'", "'<i4'", "'\\x00'"))
  head = f"{{'descr': {kind}, 'fortran_order': {rng.choice(('False', 'True', '0', '[]'))}, " \
         f"'shape': {shape}, }}"
  head += rng.choice(("", "", "#", "'", "\0", "\\")) + "\n"
  length = rng.choice((len(head), len(head), len(head), 0, 1, 65_535))
  return f"head {head[:120]!r}", b"\x93NUMPY\1\0" + struct.pack("<H", length) + head.encode(
      ) + content[128:]
