"""Tiny corpora for the tests of of_jax.data, and a log that can be read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from of_jax.config import DataConfig


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
  """Thirty small .py files in two folders, no two alike."""
  for i in range(30):
    path = tmp_path / "texts" / f"part{i % 2}" / f"file{i}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"def function_{i}_{j}(value):\n  return value + {i * j}\n"
                              for j in range(12)))
  return tmp_path / "texts"


@pytest.fixture
def make_data(tmp_path: Path, text_folder: Path) -> Callable[..., DataConfig]:
  """A DataConfig of the tiny folder, with its cache in tmp_path; keywords replace fields."""
  base = DataConfig(corpus=f"text:{text_folder}", vocab_size=300, validation_fraction=0.1,
                    cache_dir=str(tmp_path / "cache"), eval_sequences=4)
  return lambda **fields: dataclasses.replace(base, **fields)


class Lines(list[str]):
  """A `log` that keeps its lines."""

  def __call__(self, line: str) -> None:
    self.append(line)


@pytest.fixture
def log() -> Lines:
  return Lines()
