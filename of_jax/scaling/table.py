"""Points to fit, as columns: from a CSV file, or from run directories (see `variables`)."""

import csv
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from of_jax.errors import UserError, nearest
from of_jax.scaling.jets import Floats

# A column of a CSV file that says which runs diverged, 1 or 0.
DIVERGED = "diverged"


@dataclasses.dataclass(frozen=True)
class Table:
  """Points.

  Attributes:
    names: of the points.
    columns: variables by name, [n].
    y: the target, [n].
    y_name, y_says: its name, and what it is in full.
    left_out: why -> names of runs that are no points.
    notes: what a reader should know of the numbers.
    source: folder or file.
  """

  names: tuple[str, ...]
  columns: Mapping[str, Floats]
  y: Floats
  y_name: str
  y_says: str
  left_out: Mapping[str, tuple[str, ...]]
  notes: tuple[str, ...]
  source: str

  def keep(self, which: npt.NDArray[np.bool_], why: str = "") -> "Table":
    """Takes some points; with `why`, the others are listed under it."""
    gone = tuple(n for n, w in zip(self.names, which, strict=True) if not w)
    left_out = {**self.left_out, why: gone} if why and gone else self.left_out
    return dataclasses.replace(
        self, names=tuple(n for n, w in zip(self.names, which, strict=True) if w),
        columns={k: v[which] for k, v in self.columns.items()}, y=self.y[which],
        left_out=left_out)

  def sha256(self) -> str:
    """Hashes names, columns and target."""
    text = json.dumps([list(self.names), {k: v.tolist() for k, v in sorted(self.columns.items())},
                       self.y.tolist()])
    return hashlib.sha256(text.encode()).hexdigest()


def read_csv(path: str, y: str) -> Table:
  """Reads a CSV file whose first line names its columns; lines that begin with # are comments.

  Columns that are no numbers are labels; one of them, `name` or `run`, names the points.

  Raises:
    UserError: no such file or column, a row that does not fit the header, a target that is no
      number.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise UserError(f"--csv={path}: no such file")
  try:
    text = file.read_text(encoding="utf-8-sig")
  except (UnicodeDecodeError, OSError) as error:
    raise UserError(f"--csv={path}: not readable as UTF-8 text: {error}".split("\n")[0]) from None
  lines = [(number, line) for number, line in enumerate(text.splitlines(), 1)
           if line.strip() and not line.lstrip().startswith("#")]
  if not lines:
    raise UserError(f"--csv={path}: empty")
  cells = list(csv.reader([line for _, line in lines], skipinitialspace=True))
  header = [name.strip() for name in cells[0]]
  if len({*header}) < len(header) or not all(header):
    raise UserError(f"--csv={path}: the first line must name every column once, it is "
                    f"{','.join(cells[0])}")
  for (number, _), row in zip(lines, cells, strict=True):
    if len(row) != len(header):
      raise UserError(f"--csv={path}, line {number}: {len(row)} values, of {len(header)} columns")
  if y not in header:
    raise UserError(f"--y={y}: no such column" + nearest(
        y, header, otherwise=f"; there are {', '.join(header)}"))
  numbers = [number for number, _ in lines[1:]]
  columns = {name: [row[i].strip() for row in cells[1:]] for i, name in enumerate(header)}
  return _table(path, y, numbers, columns)


def _table(path: str, y: str, numbers: Sequence[int], texts: Mapping[str, list[str]]) -> Table:
  parsed = {name: [_number(text) for text in column] for name, column in texts.items()}
  for name, column in parsed.items():
    for number, value, text in zip(numbers, column, texts[name], strict=True):
      is_label = name != y and all(v is None for v in column)
      if value is None and not is_label:
        raise UserError(f"--csv={path}, line {number}: {name} is {text or 'empty'}, not a number")
  columns = {name: np.array(column, np.float64) for name, column in parsed.items()
             if all(v is not None for v in column)}
  labels = next((texts[name] for name in ("name", "run") if name in texts),
                [f"line {number}" for number in numbers])
  table = Table(tuple(labels), {k: v for k, v in columns.items() if k not in (y, DIVERGED)},
                columns[y], y, f"column {y}", {}, (), path)
  if DIVERGED in columns:
    table = table.keep(columns[DIVERGED] == 0, "diverged")
  if not table.names:
    raise UserError(f"--csv={path}: no line below the first" + (
        " is of a run that did not diverge" if numbers else ""))
  check_finite(table, f"--csv={path}, ")
  return table


def check_finite(table: Table, where: str) -> None:
  """Raises UserError for a target that is not a positive finite number."""
  for name, value in zip(table.names, table.y, strict=True):
    if not (math.isfinite(value) and value > 0):
      raise UserError(
          f"{where}{name}: {table.y_name} is {value:g}; a law is fitted to logarithms, so it must "
          "be positive and finite" + (f" (a run that diverged has 1 in a column {DIVERGED})"
                                      if where.startswith("--csv") else ""))


def check_variables(table: Table, names: Sequence[str]) -> None:
  """Raises UserError for a variable of the law that is not positive and finite at every point."""
  for variable in names:
    for name, value in zip(table.names, table.columns[variable], strict=True):
      if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name}: {variable} is {value:g}; a law's variables must be positive and "
                        "finite at every point")


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None
