"""The tables of variants in docs/ are what the classes say."""

import pytest

from experiments import variants


def test_page_is_up_to_date() -> None:
  assert variants.in_page() == variants.tables(), "run python -m experiments.variants --write"


def test_first_paragraph_becomes_mathematics_and_source() -> None:
  class Good:
    """y = f(x) (z), if
    x > 0 (Someone 2020, 2001.12345 (v2), eq. 3); and more (not this).

    Other text (Another 2021).
    """

  class Bad:
    """y = f(x) (of course)."""

  assert variants.summary(Good) == (
      "y = f(x) (z), if x > 0", "Someone 2020, 2001.12345 (v2), eq. 3")
  with pytest.raises(ValueError, match="Bad: its docstring's first paragraph has no"):
    variants.summary(Bad)
