"""Tensors of a foreign model, each handed out once."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from of_jax.errors import UserError
from of_jax.interop.report import Tensor

Shape = tuple[int, ...]


class Stored(Protocol):
  """Tensor in a file: its type and shape are known before it is read."""

  @property
  def dtype(self) -> str:
    ...

  @property
  def shape(self) -> Shape:
    ...

  def load(self, name: str) -> np.ndarray:
    """Reads the array in float32. `name` is for messages."""
    ...


@dataclasses.dataclass(frozen=True)
class Span:
  """Base of the tensors that are a run of bytes in a file.

  Attributes:
    dtype: the format's name of its type, as `BF16` or `Q4_1`.
    shape: as NumPy counts, the last axis contiguous.
    start, stop: bytes in the file.
  """

  path: Path
  dtype: str
  shape: Shape
  start: int
  stop: int

  def content(self, name: str) -> bytes:
    """Reads the bytes. Raises UserError where the file has changed and ends before them."""
    with self.path.open("rb") as file:
      file.seek(self.start)
      found = file.read(self.stop - self.start)
    if len(found) != self.stop - self.start:
      raise UserError(f"{self.path}: ends inside {name}; the file is truncated")
    return found


class Tensors:
  """Hands out tensors by name and keeps account.

  Names may come with or without the prefix under which a language model keeps its body, as
  `transformer.` in GPT-2, or the end of it, as `decoder.` in OPT: it is left away.
  """

  def __init__(self, path: Path, stored: Mapping[str, Stored], prefix: str = ""):
    self._path = path
    self._stored: dict[str, Stored] = {}
    self._names: dict[str, str] = {}
    for name, tensor in stored.items():
      short = _without(prefix, name)
      if short in self._stored:
        raise UserError(f"{path}: holds both {name} and {self._names[short]}, which are one tensor")
      self._stored[short], self._names[short] = tensor, name
    self._open = set(self._stored)
    self.used: list[Tensor] = []
    self.ignored: list[tuple[Tensor, str]] = []

  def __contains__(self, name: str) -> bool:
    return name in self._stored

  def shape(self, name: str) -> Shape:
    """Shape of a tensor that may be taken later."""
    self._require(name)
    return self._stored[name].shape

  def look(self, name: str, shape: Shape) -> np.ndarray:
    """Reads a tensor in float32 without taking it, where it decides how others are read.

    Raises:
      UserError: it is not there, has another shape than the config gives it, or holds what is not
        a finite number.
    """
    if self.shape(name) != shape:
      raise UserError(f"{self._path}: tensor {self._names[name]} has the shape "
                      f"{self._stored[name].shape}; by the config it must be {shape}")
    array = self._stored[name].load(self._names[name])
    if not np.isfinite(array).all():
      raise UserError(f"{self._path}: tensor {self._names[name]} holds NaN or infinity")
    return array

  def take(self, name: str, shape: Shape) -> np.ndarray:
    """Takes a tensor in float32, once. Raises as `look` does."""
    array = self.look(name, shape)
    assert name in self._open, f"{name} taken twice"
    self._open.remove(name)
    self.used.append(self._described(name))
    return array

  def ignore(self, pattern: str, reason: str) -> None:
    """Sets aside the tensors whose whole names match; there may be none."""
    for name in sorted(self._open):
      if re.fullmatch(pattern, name):
        self._open.remove(name)
        self.ignored.append((self._described(name), reason))

  def ignore_copy(self, name: str, original: np.ndarray) -> None:
    """Sets aside a tied copy, if it is there and equal."""
    if name not in self._open:
      return
    if not np.array_equal(self.look(name, original.shape), original):
      raise UserError(f"{self._path}: {self._names[name]} differs from the token embedding, while "
                      "the config ties them (tie_word_embeddings)")
    self.ignore(re.escape(name), "a copy of the token embedding, tied")

  def finish(self) -> None:
    """Raises UserError if a tensor was neither used nor set aside."""
    if self._open:
      names = sorted(self._names[name] for name in self._open)
      more = f" and {len(names) - 3} more" if len(names) > 3 else ""
      raise UserError(f"{self._path}: left over after loading: {', '.join(names[:3])}{more}; the "
                      "config describes a model without them")

  def _require(self, name: str) -> None:
    if name not in self._stored:
      raise UserError(f"{self._path}: lacks the tensor {name}, which its config calls for; it "
                      f"holds {len(self._stored)} others")

  def _described(self, name: str) -> Tensor:
    stored = self._stored[name]
    return Tensor(self._names[name], stored.dtype, stored.shape)


def _without(prefix: str, name: str) -> str:
  parts = prefix.split(".")
  starts = (".".join(parts[i:]) for i in range(len(parts) - 1))
  return next((name.removeprefix(start) for start in starts if name.startswith(start)), name)
