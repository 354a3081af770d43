"""Compares our numbers with those of the papers' authors, and tells by how much they differ.

Each file of this folder holds `COMPARISONS`: one entry for each number that somebody else's code
computed too. Their numbers are goldens of tests/golden, made by the script beside them in an
environment of its own. `python -m tests.fidelity` writes the table of docs/fidelity.md from all of
them; test_fidelity.py runs them as tests.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable

FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Describes one item that was computed by somebody else's code and by ours.

  `item` says what is compared, in a few plain words. `against` is the repository or package,
  `version` its commit or release, `date` the day on which the golden was made (YYYY-MM-DD).
  `measure` holds what the error is, e.g. "largest relative difference of a range"; `error` computes
  it from the golden and from our code, and `tolerance` is what the test allows.
  """

  item: str
  against: str
  version: str
  date: str
  measure: str
  error: Callable[[], float]
  tolerance: float
  slow: bool = False


def comparisons() -> list[Comparison]:
  """Returns the comparisons of every file of this folder, by file name and in their order."""
  found = []
  for path in sorted(FOLDER.glob("*.py")):
    if not path.stem.startswith(("_", "test_")):
      found += importlib.import_module(f"tests.fidelity.{path.stem}").COMPARISONS
  return found
