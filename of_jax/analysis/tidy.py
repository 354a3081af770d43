"""Numbers of a run as a table of one number a row. Enters: a run directory. Leaves: rows, or a
pandas DataFrame of them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from of_jax.analysis.curves import by_step, number, sites
from of_jax.errors import UserError
from of_jax.storage.run_directory import METRICS, read_lines

if TYPE_CHECKING:
  import pandas


class Row(NamedTuple):
  """One number.

  Attributes:
    step: how many steps were done.
    split: train or eval.
    site: where it was measured; "ROLE parameters" of the optimiser; "" of the whole run.
    layer: its place in the list that metrics.jsonl has, from 0; None of the whole run.
    metric: its id, loss and its like; `top_neurons[0]` of a list a layer.
    value: NaN where it is undefined or not finite.
  """

  step: int
  split: str
  site: str
  layer: int | None
  metric: str
  value: float


def rows(path: Path) -> Iterator[Row]:
  """Reads every number of a run's metrics.jsonl, in order of step.

  Raises:
    UserError: a line that is broken.
  """
  for (step, split), line in by_step(read_lines(path / METRICS)).items():
    for name, value in line.items():
      if name not in ("step", "split", "telemetry", "optimizer"):
        yield Row(step, split, "", None, name, number(value))
    for site, metrics in sites(line).items():
      for metric, values in metrics.items():
        for layer, value in enumerate(values if isinstance(values, list) else [values]):
          for name, one in _entries(metric, value):
            yield Row(step, split, site, layer, name, one)


def frame(found: Sequence[Row]) -> "pandas.DataFrame":
  """Makes a DataFrame of rows; `layer` is a nullable integer, split, site and metric categories.

  Raises:
    UserError: pandas is not installed.
  """
  try:
    import pandas
  except ImportError:
    raise UserError("a table of metrics needs pandas; pip install -e '.[pandas]', or read "
                    "of_jax.analysis.tidy.rows, which does without") from None
  table = pandas.DataFrame(found, columns=list(Row._fields))
  return table.astype({"step": "int64", "layer": "Int64", "value": "float64",
                       **dict.fromkeys(("split", "site", "metric"), "category")})


def _entries(metric: str, value: Any) -> Iterator[tuple[str, float]]:
  """The name and number of a layer's value, or of each where it has a list of them."""
  if isinstance(value, list):
    for place, item in enumerate(value):
      yield f"{metric}[{place}]", number(item)
  else:
    yield metric, number(value)
