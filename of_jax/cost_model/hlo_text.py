"""The text of optimised HLO, parsed: computations of instructions, as plain data.

Enters: `compiled.as_text()`. Leaves: computations by name, each its instructions by name.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0, "opaque": 0, "bf16": 16}

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation|"
                     r"called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """A part of a value; `memory` 0 is the device's main memory, others are on the chip."""

  dtype: str
  dims: tuple[int, ...]
  memory: int = 0

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Bytes in main memory: 0 of an array that lives on the chip, or of a token."""
    return 0 if self.memory else self.payload

  @property
  def payload(self) -> int:
    """Bytes, wherever it lives."""
    digits = re.sub(r"^[a-z]+", "", self.dtype)
    bits = _BITS.get(self.dtype)
    if bits is None:
      bits = int(re.match(r"\d+", digits).group()) if digits else 32  # type: ignore[union-attr]
    return (self.size * bits + 7) // 8


@dataclasses.dataclass
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in its computation, without %.
    arrays: the parts of its result.
    opcode: as `fusion`.
    operands: names of what it is given.
    arguments: the text between its parentheses.
    attributes: the text behind them.
    is_root: whether it is what the computation leaves.
  """

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  is_root: bool

  @property
  def bytes(self) -> int:
    """Bytes of its result in main memory."""
    return sum(array.bytes for array in self.arrays)

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that it calls, in order."""
    groups = _CALLED.findall(self.attributes)
    return tuple(name.strip().lstrip("%") for group in groups
                 for name in group.strip("{}").split(","))

  def attribute(self, name: str) -> str | None:
    """Finds the text of `name=...` up to the next comma outside braces."""
    found = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|[^, ]+)", self.attributes)
    return found.group(1) if found else None


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Splits a program into computations by name, and finds the entry's name.

  Raises:
    ValueError: there is no entry.
  """
  computations: dict[str, Computation] = {}
  entry = ""
  current: Computation | None = None
  # A kernel's description of itself, the only thing in this text that goes over lines.
  text = re.sub(r"kernel_metadata=\{\n.*\n\}\}", "}", text)
  for line in text.splitlines():
    if current is None:
      head = _HEAD.match(line)
      if head:
        current = computations.setdefault(head.group(2), {})
        entry = head.group(2) if head.group(1) else entry
    elif line.startswith("}"):
      current = None
    elif " = " in line:
      instruction = _parse_line(line)
      current[instruction.name] = instruction
  if not entry:
    raise ValueError("no ENTRY computation: is this the text of a compiled program?")
  return computations, entry


def origin(name: str, computation: Computation) -> Instruction:
  """Finds the instruction that a value is a copy of."""
  instruction = computation[name]
  while instruction.opcode in ("copy", "bitcast", "copy-start", "copy-done"):
    instruction = computation[instruction.operands[0]]
  return instruction


def window_of(instruction: Instruction) -> dict[str, list[int]]:
  """Reads `window={size=3x3 stride=1x1 pad=1_1x1_1 ...}` -> lists, `pad` of the low side alone."""
  text = (instruction.attribute("window") or "{}").strip("{}")
  given = dict(part.split("=") for part in text.split())
  sizes = [int(n) for n in given.get("size", "").split("x") if n]
  ones = "x".join(["1"] * len(sizes))

  def numbers(name: str, default: str) -> list[int]:
    return [int(n.split("_")[0]) for n in given.get(name, default).split("x") if n]

  return {"size": sizes, "stride": numbers("stride", ones),
          "pad": numbers("pad", ones.replace("1", "0")),
          "lhs_dilate": numbers("lhs_dilate", ones), "rhs_dilate": numbers("rhs_dilate", ones)}


def _parse_line(line: str) -> Instruction:
  left, _, right = line.strip().partition(" = ")
  # Comments such as /*index=5*/ stand within long tuples.
  right = re.sub(r"/\*.*?\*/", "", right)
  end = _matching(right, 0) + 1 if right.startswith("(") else right.index(" ")
  arrays = tuple(_arrays(right[:end]))
  opcode, _, _ = (rest := right[end:].strip()).partition("(")
  close = _matching(rest, len(opcode))
  arguments = rest[len(opcode) + 1:close]
  return Instruction(
      left.removeprefix("ROOT ").lstrip("%"), arrays, opcode, tuple(_NAME.findall(arguments)),
      arguments, rest[close + 1:].lstrip(", "), left.startswith("ROOT "))


def _arrays(text: str) -> Iterator[Array]:
  for dtype, dims, layout in _ARRAY.findall(text):
    memory = re.search(r"S\((\d+)\)", layout)
    yield Array(dtype, tuple(int(n.strip("<= ")) for n in dims.split(",") if n.strip()),
                int(memory.group(1)) if memory else 0)


def _matching(text: str, start: int) -> int:
  """The position of the parenthesis that closes the one at `start`."""
  depth = 0
  for position in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[position], 0)
    if not depth:
      return position
  raise ValueError(f"no closing parenthesis: {text[start:start + 80]}")
