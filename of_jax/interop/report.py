"""Report of a loading, tensor by tensor: the proof that nothing was left over or read twice."""

import collections
import dataclasses


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Tensor that a file holds: the file's name for it, type and shape."""

  name: str
  dtype: str
  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LoadReport:
  """Record of how a foreign model was read.

  Attributes:
    path: of the folder or file.
    kind: format and family.
    used: tensors that became parameters, each read once.
    ignored: tensors that the original's forward pass does not use, with the reason.
    zeros: our parameters that the original has not, which are zero.
    unread: fields of its config that say nothing about the function, or that nobody knows here.
    parameters: numbers that the model has, those in `zeros` left out.
    notes: what a user should know beside.
  """

  path: str
  kind: str
  used: tuple[Tensor, ...]
  ignored: tuple[tuple[Tensor, str], ...]
  zeros: tuple[str, ...]
  unread: tuple[str, ...]
  parameters: int
  notes: tuple[str, ...] = ()

  def __str__(self) -> str:
    types = collections.Counter(tensor.dtype for tensor in self.used)
    lines = [
        f"{self.path}: {self.kind}, {self.parameters:,} parameters",
        f"  {len(self.used)} tensors used, each once, 0 left over; of type "
        + ", ".join(f"{name} {count}" for name, count in sorted(types.items()))]
    reasons = collections.Counter(reason for _, reason in self.ignored)
    lines += [f"  {count} tensors ignored: {reason}" for reason, count in reasons.items()]
    if self.zeros:
      lines.append(f"  {len(self.zeros)} offsets the original has not are zero here, as "
                   f"{self.zeros[0]}")
    if self.unread:
      lines.append("  fields of its config that were not read: " + ", ".join(self.unread))
    return "\n".join(lines + [f"  {note}" for note in self.notes])

  def table(self) -> str:
    """Lines to print, one a tensor: type, shape, name."""
    rows = [(tensor, "") for tensor in self.used]
    rows += [(tensor, f"  ignored: {reason}") for tensor, reason in self.ignored]
    return "\n".join(f"{tensor.dtype:5} {'x'.join(map(str, tensor.shape)) or '1':>14}  "
                     f"{tensor.name}{note}" for tensor, note in rows)
