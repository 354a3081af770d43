"""The tables of variants in docs/ are what the classes say."""

from of_jax.commands import variants


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
  # As a variant of one's own may be: whole, and not the base's.
  assert variants.summary(Bad) == ("y = f(x) (of course).", "")
  assert variants.summary(type("Silent", (Good,), {})) == ("", "")


def test_every_variant_of_ours_names_its_source() -> None:
  rows = [line.split(" | ") for line in variants.tables().splitlines()
          if line.startswith("| `") and not line.startswith("| `model.") or "=true`" in line]
  assert len(rows) > 30
  assert not [row for row in rows if not row[3].strip(" |")]
