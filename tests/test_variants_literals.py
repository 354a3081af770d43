"""Constants at the top of a variant's file, read without running it."""

from pathlib import Path
from typing import Any

import pytest

from of_jax import variants
from of_jax.config.declared_metrics import user_family
from of_jax.errors import UserError
from tests.planted import planted

FOLDER = "models/norms"


def read(root: Path, text: str, **default: Any) -> Any:
  with planted(root, {f"{FOLDER}/mine.py": text}):
    return variants.literal(FOLDER, "mine", "WANTED", **default)


@pytest.mark.parametrize("text, value", (
    ("WANTED = 1e-3", 1e-3),
    ("WANTED: dict[str, tuple[str, ...]] = {'a': ('b',)}", {"a": ("b",)}),
    ("OTHER = WANTED = True", True),
    ("WANTED = LAST + ('d',)\nFIRST: str = 'a'\nLAST = (FIRST, 'b' 'c')", ("a", "bc", "d")),
    ("ROWS = ('x', 'y')\nWANTED = {'z': (*ROWS, None), **MORE}\nMORE = {'u': [-1, 2 ** 3]}",
     {"z": ("x", "y", None), "u": [-1, 8]}),
    ("import jax\n_NAME = 'of ' + 'x'\nWANTED = {_NAME: 12 * 2 / 3}", {"of x": 8.0}),
))
def test_a_constant_may_be_annotated_and_made_of_others(text: str, value: Any, tmp_path: Path
                                                        ) -> None:
  assert read(tmp_path, text) == value


def test_the_default_is_for_a_file_that_does_not_set_it(tmp_path: Path) -> None:
  assert read(tmp_path / "without", "OTHER = 1", default=5) == 5
  assert read(tmp_path / "with", "WANTED = 1", default=5) == 1


@pytest.mark.parametrize("text, message", (
    ('"""A norm."""\nOTHER = 1', "mine.py:1: states no WANTED; assign it a literal at the top"),
    ("class Mine:\n  WANTED = 1", "mine.py:2: WANTED must be assigned at the top of the file"),
    ("OTHER = 1\nWANTED, OTHER2 = 1, 2", "mine.py:2: WANTED must be assigned at the top of the"),
    ("import os\nWANTED = os.sep", "mine.py:2: WANTED cannot be read without running the file: "
                                   "os.sep is not a literal"),
    ("WANTED = (1,\n          sorted('b'))", "mine.py:2: WANTED cannot be read without running"),
    ("X = 1\nWANTED = f'{X}'", "mine.py:2: WANTED cannot be read without running the file"),
    ("from x import Y\n\nWANTED = Y", "mine.py:3: WANTED cannot be read: Y is not a constant at "
                                      "the top of this file"),
    ("A = WANTED\nWANTED = A", "mine.py:1: WANTED cannot be read: WANTED is not a constant"),
    ("WANTED = 1\nif 1:\n  pass\nWANTED = 2", "mine.py:4: WANTED cannot be read without running "
                                             "the file: WANTED is assigned here and in line 1"),
    ("WANTED: int", "mine.py:1: WANTED cannot be read: WANTED is annotated and has no value"),
    ("WANTED = 'a' + 1", "mine.py:1: WANTED cannot be read: can only concatenate str"),
    ("WANTED = 1 / 0", "mine.py:1: WANTED cannot be read: division by zero"),
    ("WANTED = 1\n\ndef f(:\n", "mine.py:3: not Python: invalid syntax"),
))
def test_a_fault_is_one_line_that_names_file_and_line(text: str, message: str, tmp_path: Path
                                                      ) -> None:
  with pytest.raises(UserError) as caught:
    read(tmp_path, text)
  assert message in str(caught.value) and "\n" not in str(caught.value)
  assert str(tmp_path) in str(caught.value)


def test_a_fault_in_the_package_names_the_file_in_it() -> None:
  with pytest.raises(UserError, match=r"^of_jax/models/norms/rms\.py:1: states no WANTED"):
    variants.literal(FOLDER, "rms", "WANTED")


@pytest.mark.parametrize("annotation", ("", ": dict[str, tuple[str, ...]]"))
def test_a_users_class_may_annotate_its_metrics(annotation: str, tmp_path: Path) -> None:
  file = tmp_path / "mine.py"
  file.write_text(f"class Mine:\n  metrics{annotation} = {{'own': ('f', '', '', 'me')}}\n")
  (metric,) = user_family(f"{file}:Mine").metrics
  assert (metric.id, metric.reference) == ("own", "me")
