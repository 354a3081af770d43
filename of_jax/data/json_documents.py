"""Documents of a file of JSON lines, to be read in any order.

Enters: a path. Leaves: a sequence of documents, whose texts wait in a nameless file on disk.
"""

import array
import bisect
import functools
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from of_jax.data import json_lines
from of_jax.data.documents import Document


class JsonDocuments(Sequence[Document]):
  """One document a line, of the texts in its field; the file is read once, line by line."""

  def __init__(self, path: Path, name: str, field: str, scratch: Path | None):
    """Reads the file.

    Args:
      path: the file, perhaps compressed.
      name: of the file in the corpus.
      field: the text's.
      scratch: the folder on whose disk the texts wait; default the system's.

    Raises:
      NotText: a line without a text; the message says which.
    """
    self._name = name
    self._starts = array.array("q", [0])
    self._file = tempfile.TemporaryFile(dir=scratch)
    weakref.finalize(self, self._file.close)
    for text in json_lines.texts(path, field):
      self._file.write(text.encode("utf-8"))
      self._starts.append(self._file.tell())

  def __len__(self) -> int:
    return len(self._starts) - 1

  @overload
  def __getitem__(self, index: int) -> Document:
    ...

  @overload
  def __getitem__(self, index: slice) -> Sequence[Document]:
    ...

  def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    if not 0 <= index < len(self):
      raise IndexError(index)
    start, end = self._starts[index:index + 2]
    return Document(f"{self._name}[{index}]", end - start,
                    functools.partial(self._read, start, end))

  def _read(self, start: int, end: int) -> str:
    self._file.seek(start)
    return self._file.read(end - start).decode("utf-8")


class Chosen(Sequence[Document]):
  """Documents of several sequences, one sequence after the other, of each those at `indices`."""

  def __init__(self, parts: Sequence[tuple[Sequence[Document], Sequence[int]]]):
    self._parts = [(documents, indices) for documents, indices in parts if len(indices)]
    self._ends = array.array("q")
    for _, indices in self._parts:
      self._ends.append((self._ends[-1] if self._ends else 0) + len(indices))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  @overload
  def __getitem__(self, index: int) -> Document:
    ...

  @overload
  def __getitem__(self, index: slice) -> Sequence[Document]:
    ...

  def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    if not 0 <= index < len(self):
      raise IndexError(index)
    part = bisect.bisect_right(self._ends, index)
    documents, indices = self._parts[part]
    return documents[indices[index - (self._ends[part - 1] if part else 0)]]
