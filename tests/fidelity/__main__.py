"""Writes the table of docs/fidelity.md: each comparison with its largest error, measured now."""

import pathlib

from tests import fidelity

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "fidelity.md"
HEAD = """\
# Fidelity

What was computed by the authors' own code and by ours, and by how much the two differ. The
goldens are numbers alone (tests/golden, each beside the script that made it in an environment of
its own). This page is written by `.venv/bin/python -m tests.fidelity`; the suite runs the same
comparisons and fails above what is allowed.

| item | compared with | version | measure | largest error | allowed | golden of |
|---|---|---|---|---|---|---|
"""


def main() -> None:
  rows = [
      f"| {each.item} | {each.against} | {each.version} | {each.measure} "
      f"| {each.error():.2g} | {each.tolerance:.0e} | {each.date} |"
      for each in fidelity.comparisons()
  ]
  PAGE.write_text(HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
  main()
