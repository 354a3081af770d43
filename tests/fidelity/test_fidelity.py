"""Tests that our numbers are those of the authors' code, and that docs/fidelity.md lists them."""

import pathlib

import pytest

from tests import fidelity

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "fidelity.md"


@pytest.mark.parametrize(
    "comparison",
    [
        pytest.param(each, id=each.item, marks=[pytest.mark.slow] if each.slow else [])
        for each in fidelity.comparisons()
    ],
)
def test_equals_the_authors_code(comparison: fidelity.Comparison) -> None:
  error = comparison.error()
  assert error <= comparison.tolerance, f"{comparison.item}: {comparison.measure} is {error:.3g}"


def test_the_page_lists_every_comparison() -> None:
  page = PAGE.read_text()
  missing = [each.item for each in fidelity.comparisons() if f"| {each.item} |" not in page]
  assert not missing, f"run `python -m tests.fidelity`: docs/fidelity.md lacks {missing}"
