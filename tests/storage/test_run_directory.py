"""Files of a run directory: written whole or not at all."""

from pathlib import Path

import pytest

from of_jax.storage import run_directory


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
  path = tmp_path / "config.json"
  path.write_text("old")
  with pytest.raises(UnicodeEncodeError):
    run_directory.replace_text(path, "new" * 100_000 + "\udc00")
  assert path.read_text() == "old"
  run_directory.replace_text(path, "new\n")
  # What the failed one left beside it is gone too.
  assert path.read_bytes() == b"new\n" and list(tmp_path.iterdir()) == [path]
