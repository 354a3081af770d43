"""Reads flops, bytes and collectives of a compiled program off its optimised HLO text.

The compiler's own `cost_analysis()` counts the body of a loop once, so that 24 scanned layers are
reported as one. Here everything in a body is multiplied by the loop's trip count.

How it works: `hlo_text` splits the text into computations of instructions with their shapes. The
walk begins at the entry and follows the schedule. A loop multiplies what its body holds by its
trip count, which the compiler notes beside it, or which follows from where its counter starts,
what it adds and what it is compared with; of a conditional the branch with most flops counts. Each
other instruction is one operation: its flops are those of the matrix products (`hlo_products`) and
elementwise operations inside it, fused ones included, its bytes those that cross main memory
(`hlo_bytes`), and its cycles what the TPU compiler notes. Collectives are kept apart with their
arrays and groups. Kernels written by hand are not HLO: the caller says what they compute, and
whatever nobody can count is named in `Program.uncounted`.

Enters: `compiled.as_text()`, the program of one device. Leaves: a `Program`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

from of_jax.cost_model.hlo_bytes import Traffic
from of_jax.cost_model.hlo_groups import Groups, device_groups
from of_jax.cost_model.hlo_kernels import library_flops
from of_jax.cost_model.hlo_products import (
    NOTHING,
    Flops,
    convolution_flops,
    dot_flops,
    is_wide,
    total,
)
from of_jax.cost_model.hlo_text import Computation, Instruction, origin, parse, window_of

# One flop an element of the result, as XLA counts them; matrix products are counted apart.
_ELEMENTWISE = frozenset({
    "abs", "add", "and", "atan2", "cbrt", "ceil", "clamp", "compare", "cosine", "divide", "erf",
    "exponential", "exponential-minus-one", "floor", "is-finite", "log", "log-plus-one",
    "logistic", "maximum", "minimum", "multiply", "negate", "not", "or", "popcnt", "power",
    "remainder", "round-nearest-afz", "round-nearest-even", "rsqrt", "select", "shift-left",
    "shift-right-arithmetic", "shift-right-logical", "sign", "sine", "sqrt", "subtract", "tan",
    "tanh", "xor"})
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
                "collective-permute", "collective-broadcast")
# Operations that move nothing: views, what a loop or branch holds is counted in it, and the ends
# of what an operation named -start began.
_FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
                   "conditional", "call", "after-all", "partition-id", "replica-id", "iota",
                   "add-dependency", "opt-barrier", "optimization-barrier"})
# Targets of custom calls of the TPU compiler that compute nothing. ZeroCrop clears, in place, what
# pads an array's last tile, before its bytes are read as another type's.
_WITHOUT_FLOPS = frozenset({
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "AsyncCollectiveDone",
    "GatherScatterIndicesBitpacked", "ConcatBitcast", "SliceBitcast", "Sharding",
    "ZeroCrop"})


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation of the schedule.

  Attributes:
    name, opcode: as in the text; of a fusion the name says most.
    trips: how often a step runs it.
    flops: of one run; `matrix_flops` of them are matrix products, `wide_flops` of these products
      of float32 or wider.
    bytes: that one run moves to and from main memory.
    cycles: of one run, as the TPU compiler estimates them; 0 where it says nothing.
  """

  name: str
  opcode: str
  trips: int
  flops: int
  matrix_flops: int
  bytes: int
  cycles: int = 0
  wide_flops: int = 0


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of the schedule.

  Attributes:
    kind: as `all-reduce`.
    trips: how often a step runs it.
    bytes: of the whole array: what an all-gather leaves, what the others are given.
    groups: numbers of the devices that take part together.
    source: what the program's author called it, as far as the compiler kept it.
  """

  kind: str
  trips: int
  bytes: int
  groups: Groups
  source: str

  @property
  def group(self) -> int:
    """Number of devices that take part together; 2 of a permutation's pairs."""
    return len(self.groups[0])

  @property
  def sent(self) -> float:
    """Bytes that a device sends for one run, in a ring."""
    share = (self.group - 1) / self.group
    return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Program:
  """Everything that one device does in one run of a program.

  Attributes:
    operations, collectives: of the entry computation and of every loop body.
    uncounted: targets of custom calls, whose flops nobody knows, and loops whose trip count is
      not in the text.
  """

  operations: tuple[Operation, ...]
  collectives: tuple[Collective, ...]
  uncounted: tuple[str, ...]

  @property
  def flops(self) -> int:
    """All flops of the program, matrix products among them."""
    return sum(op.trips * op.flops for op in self.operations)

  @property
  def matrix_flops(self) -> int:
    """The flops of matrix products alone."""
    return sum(op.trips * op.matrix_flops for op in self.operations)

  @property
  def bytes(self) -> int:
    """Bytes moved between the device and its main memory."""
    return sum(op.trips * op.bytes for op in self.operations)

  @property
  def cycles(self) -> int:
    """The TPU compiler's estimate of everything that it estimates; collectives are not there."""
    return sum(op.trips * op.cycles for op in self.operations)

  def by_kind(self) -> dict[str, dict[str, int]]:
    """Sums collectives: kind -> `count` of runs, and `bytes` of their arrays in all."""
    kinds: dict[str, dict[str, int]] = {}
    for collective in self.collectives:
      total = kinds.setdefault(collective.kind, {"count": 0, "bytes": 0})
      total["count"] += collective.trips
      total["bytes"] += collective.trips * collective.bytes
    return kinds


# (a kernel's name, the shapes that it is given) -> flops of one run and the matrix products among
# them, None for a kernel that is unknown.
KernelFlops = Callable[[str, list[tuple[int, ...]]], tuple[int, int] | None]


def read(text: str, kernels: KernelFlops = lambda name, shapes: None) -> Program:
  """Reads the optimised HLO of one program.

  Args:
    text: of the program.
    kernels: what is known of kernels that are no HLO. They count as moving each of their arrays
      once, and as no cycles.

  Raises:
    ValueError: there is no entry.
  """
  header = re.search(r"^HloModule .*?num_partitions=(\d+)", text)
  return _Reader(*parse(text), int(header.group(1)) if header else 1, kernels).read()


class _Reader:
  """One walk over a program's computations, which collects a `Program`."""

  def __init__(self, computations: dict[str, Computation], entry: str, partitions: int,
               kernels: KernelFlops):
    self._computations, self._kernels = computations, kernels
    self._entry, self._partitions = entry, partitions
    self._traffic = Traffic(computations)
    self._operations: list[Operation] = []
    self._collectives: list[Collective] = []
    self._uncounted: dict[str, None] = {}

  def read(self) -> Program:
    """Walks the program from its entry."""
    self._schedule(self._entry, 1)
    return Program(tuple(self._operations), tuple(self._collectives), tuple(self._uncounted))

  def _schedule(self, name: str, trips: int) -> None:
    """Adds everything that `trips` runs of a computation do."""
    computation = self._computations[name]
    for instruction in computation.values():
      opcode = instruction.opcode
      if opcode == "while":
        inner = self._trip_count(instruction, computation)
        for part in instruction.called:
          self._schedule(part, trips * inner)
      elif opcode == "conditional":
        # The branch that does most, as a bound on every step.
        self._schedule(max(instruction.called, key=lambda branch: self._flops(branch)), trips)
      elif opcode == "call":
        self._schedule(instruction.called[0], trips)
      else:
        self._collect(instruction, computation, trips)
        if opcode.endswith(("-done", "-update")) or opcode in _FREE:
          continue
        flops, matrix, wide = self._instruction_flops(instruction, computation)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        self._operations.append(Operation(
            instruction.name, opcode, trips, flops, matrix,
            self._traffic.of(instruction, computation), int(cycles.group(1)) if cycles else 0,
            wide))

  def _trip_count(self, loop: Instruction, computation: Computation) -> int:
    """Runs of a loop's body: as the compiler notes them, else as its counter says."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
      return int(known.group(1))
    trips = self._counted(loop, computation)
    if trips is None:
      self._uncounted[f"trips of {loop.name}"] = None
      return 1
    return trips

  def _counted(self, loop: Instruction, computation: Computation) -> int | None:
    """ceil((bound - start) / step) of a loop that runs while its counter is below a constant."""
    condition, body = (self._computations[
        (loop.attribute(name) or "").lstrip("%")] for name in ("condition", "body"))
    test = next(part for part in condition.values() if part.is_root)
    if test.opcode != "compare" or test.attribute("direction") != "LT":
      return None
    counter = origin(test.operands[0], condition)
    state = origin(loop.operands[0], computation)
    updated = next(part for part in body.values() if part.is_root)
    if counter.opcode != "get-tuple-element" or {state.opcode, updated.opcode} != {"tuple"}:
      return None
    index = int(counter.attribute("index") or 0)
    step = origin(updated.operands[index], body)
    if step.opcode != "add":
      return None
    begin = origin(state.operands[index], computation)
    bound, ends = (origin(name, where) for name, where in (
        (test.operands[1], condition), (step.operands[1], body)))
    values = [int(part.arguments) if part.opcode == "constant" else None
              for part in (begin, bound, ends)]
    if None in values or not values[2]:
      return None
    start, stop, by = values
    return max(0, -((start - stop) // by))  # type: ignore[operator]

  def _collect(self, instruction: Instruction, computation: Computation, trips: int,
               fused: str = "") -> None:
    """Collectives, which may stand within a fusion, `fused`, or what an async-start calls."""
    kind = instruction.opcode.removesuffix("-start")
    channel = instruction.attribute("channel_id")
    if kind in _COLLECTIVES:
      # What is started in one fusion stands again in those that wait for it.
      if not (fused and channel in self._started and not self._starts(fused)):
        given = sum(array.payload for name in instruction.operands
                    for array in computation[name].arrays)
        groups = device_groups(instruction, self._partitions)
        if kind == "all-reduce" and fused.startswith("all-reduce-scatter"):
          kind = "reduce-scatter"
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        self._collectives.append(Collective(
            kind, trips, given * len(groups[0]) if kind == "all-gather" else given, groups,
            source.group(1) if source else instruction.name))
    elif instruction.opcode == "custom-call":
      target = (instruction.attribute("custom_call_target") or "custom call").strip('"')
      if target not in _WITHOUT_FLOPS and self._kernel_flops(instruction, computation) is None:
        self._uncounted[target] = None
    if instruction.opcode in ("fusion", "async-start"):
      for name in instruction.called:
        inner = self._computations[name]
        for part in inner.values():
          self._collect(part, inner, trips, name)

  @functools.cached_property
  def _started(self) -> frozenset[str | None]:
    """Channels of collectives that a fusion of their own starts."""
    return frozenset(
        part.attribute("channel_id") for name, inner in self._computations.items()
        if self._starts(name) for part in inner.values() if part.opcode in _COLLECTIVES)

  def _starts(self, name: str) -> bool:
    return any(part.attribute("custom_call_target") == '"AsyncCollectiveStart"'
               for part in self._computations[name].values() if part.opcode == "custom-call")

  @functools.cache
  def _computation_flops(self, name: str) -> Flops:
    """Flops of one run, the matrix products among them, and the wide ones among these."""
    computation = self._computations[name]
    return total(self._instruction_flops(i, computation) for i in computation.values())

  def _flops(self, name: str) -> int:
    return self._computation_flops(name)[0]

  def _instruction_flops(self, instruction: Instruction, computation: Computation) -> Flops:
    opcode, arrays = instruction.opcode, instruction.arrays
    if opcode in ("dot", "convolution", "custom-call"):
      if opcode == "custom-call":
        flops, matrix = self._kernel_flops(instruction, computation) or (0, 0)
      else:
        count = dot_flops if opcode == "dot" else convolution_flops
        flops = matrix = count(instruction, computation)
      return flops, matrix, matrix if is_wide(instruction, computation) else 0
    if opcode in ("fusion", "call", "async-start"):
      return self._computation_flops(instruction.called[0]) if instruction.called else NOTHING
    if opcode == "while":
      inner = self._trip_count(instruction, computation)
      flops, matrix, wide = total(self._computation_flops(part) for part in instruction.called)
      return inner * flops, inner * matrix, inner * wide
    if opcode == "conditional":
      return max(self._computation_flops(branch) for branch in instruction.called)
    if opcode in _ELEMENTWISE:
      return sum(array.size for array in arrays), 0, 0
    if opcode in ("reduce", "all-reduce", "reduce-scatter"):
      # Half of a reduction's operands are the values that it starts from.
      given = instruction.operands[:max(1, len(instruction.operands) // 2)]
      read_elements = sum(a.size for name in given for a in computation[name].arrays)
      return max(0, read_elements - sum(array.size for array in arrays)), 0, 0
    if opcode == "reduce-window":
      window = math.prod(window_of(instruction)["size"])
      return arrays[0].size * max(0, window - 1), 0, 0
    return NOTHING

  def _kernel_flops(self, instruction: Instruction, computation: Computation
                    ) -> tuple[int, int] | None:
    library = library_flops((instruction.attribute("custom_call_target") or "").strip('"'),
                            instruction, computation)
    if library is not None:
      return library, library
    # Perhaps within what gradients are of, as in transpose(jvp(NAME))/pallas_call.
    name = re.search(r'op_name="[^"]*?(\w+)\)*/pallas_call"', instruction.attributes)
    return self._kernels(name.group(1), [
        array.dims for operand in instruction.operands
        for array in computation[operand].arrays]) if name else None
