"""Bytes that operations of compiled text move to and from main memory.

A fusion reads of each operand what its operations read of it, so that one layer's slice of a
stacked array counts as the slice; an update in place writes the update alone. Enters:
instructions as of_jax.cost_model.hlo_text parses them. Leaves: bytes.
"""

from collections.abc import Mapping

from of_jax.cost_model.hlo_text import Computation, Instruction

# Operations that read no more of their first operand than they leave.
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})


class Traffic:
  """Counts what operations move, given every computation of the program by name."""

  def __init__(self, computations: Mapping[str, Computation]):
    self._computations = computations

  def of(self, instruction: Instruction, computation: Computation) -> int:
    """Bytes that one run of an operation reads and writes in main memory."""
    if instruction.opcode.endswith("-start"):
      given = [array for name in instruction.operands for array in computation[name].arrays]
      if instruction.opcode == "copy-start":
        # The result is (copy, source, context).
        return instruction.arrays[0].bytes + given[0].bytes
      # That of the others holds what they were given, then what they make, then contexts.
      made = instruction.arrays[len(given):len(given) + 1] or instruction.arrays
      if instruction.opcode.endswith("slice-start"):
        return made[0].bytes + min(given[0].bytes, made[0].payload)
      return sum(array.bytes for array in (*given, *made))
    written = self._written(instruction, computation)
    if instruction.opcode == "fusion":
      inner = self._computations[instruction.called[0]]
      parameters = {int(part.arguments): part for part in inner.values()
                    if part.opcode == "parameter"}
      return written + sum(
          self._read(parameters[index], inner, computation[name].bytes)
          for index, name in enumerate(instruction.operands) if index in parameters)
    reads = [computation[name].bytes for name in instruction.operands]
    if instruction.opcode in _SLICES:
      reads[0] = min(reads[0], sum(array.payload for array in instruction.arrays))
    if instruction.opcode == "dynamic-update-slice":
      reads[0] = 0
    return written + sum(reads)

  def _read(self, value: Instruction, computation: Computation, whole: int) -> int:
    """Bytes of `value` that the operations of a fusion read, at most all of it."""
    total = 0
    for user in computation.values():
      for position, name in enumerate(user.operands):
        if name != value.name:
          continue
        if user.opcode in _SLICES and position == 0:
          total += sum(array.payload for array in user.arrays)
        elif user.opcode == "dynamic-update-slice" and position == 0:
          continue
        elif user.opcode == "bitcast":
          total += self._read(user, computation, whole)
        elif user.opcode == "fusion":
          inner = self._computations[user.called[0]]
          parameter = next((part for part in inner.values() if part.opcode == "parameter"
                            and int(part.arguments) == position), None)
          total += self._read(parameter, inner, whole) if parameter else 0
        else:
          return whole
    return min(total, whole)

  def _written(self, instruction: Instruction, computation: Computation) -> int:
    """Bytes of the results, less what an update in place leaves as it was."""
    if instruction.opcode == "dynamic-update-slice":
      update = computation[instruction.operands[1]]
      return min(instruction.bytes, sum(array.payload for array in update.arrays))
    if instruction.opcode != "fusion":
      return instruction.bytes
    inner = self._computations[instruction.called[0]]
    root = next(part for part in inner.values() if part.is_root)
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(instruction.arrays):
      return instruction.bytes
    return sum(min(array.bytes, self._result(part, inner)) for part, array in
               zip(results, instruction.arrays))

  def _result(self, part: Instruction, computation: Computation) -> int:
    """Bytes that the root of a fusion writes, wherever they go."""
    while part.opcode == "bitcast":
      part = computation[part.operands[0]]
    if part.opcode == "dynamic-update-slice":
      return sum(array.payload for array in computation[part.operands[1]].arrays)
    if part.opcode == "fusion":
      inner = self._computations[part.called[0]]
      return self._result(next(p for p in inner.values() if p.is_root), inner)
    return sum(array.payload for array in part.arrays)
