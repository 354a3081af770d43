"""FILE.py:NAME in place of a name: what is said of a wrong one, without running any of it."""

from pathlib import Path

import pytest

from of_jax import user_code
from of_jax.config import Config, apply_overrides, own_code, replaced
from of_jax.errors import UserError

FIELDS = ("model.block", "model.norm", "model.mlp", "model.attention_gate",
          "model.attention_softmax", "model.qk_norm", "optim.name", "train.loss_term",
          "data.corpus")
# It would end the process that runs it.
NEVER_RUN = """
import os
os._exit(3)
FIELDS = {"b1": 0.9}
OVER_ANY_AXIS = True
HELPERS = 3


class Mine:
  pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
  (tmp_path / "mine.py").write_text(NEVER_RUN)
  return tmp_path / "mine.py"


@pytest.mark.parametrize("path", FIELDS)
def test_every_such_field_takes_a_file_and_says_what_is_wrong(path: str, file: Path) -> None:
  config = apply_overrides(Config(), [(path, f"{file}:Mine")])
  # The last norm is that of the blocks.
  also = {"model.final_norm_kind"} if path == "model.norm" else set()
  assert own_code.named(config) == {name: f"{file}:Mine" for name in {path, *also}}
  for text, what in ((f"{file}:mine", "defines no class or function mine; did you mean Mine?"),
                     (f"{file.parent}/none.py:Mine", "no such file as"),
                     (str(file), "not of the form FILE.py:NAME"),
                     (f"{file}:not a name", "not of the form FILE.py:NAME")):
    with pytest.raises(UserError) as said:
      apply_overrides(Config(), [(path, text)])
    assert str(said.value).startswith(f"config.{path}={text}: ") and what in str(said.value)


@pytest.mark.parametrize("name", ["norm", "loss_term"])
def test_a_line_that_is_not_python_is_named(name: str, tmp_path: Path) -> None:
  (tmp_path / "torn.py").write_text("x = 1\nclass Mine\n")
  path = {"norm": "model.norm", "loss_term": "train.loss_term"}[name]
  with pytest.raises(UserError, match=r"torn\.py:2: not Python: "):
    apply_overrides(Config(), [(path, f"{tmp_path}/torn.py:Mine")])


def test_traits_are_read_off_the_users_file(tmp_path: Path) -> None:
  path = tmp_path / "mine.py"
  path.write_text("GAIN_PER_NEURO = False\nclass Mine: pass\n")
  with pytest.raises(UserError, match=r"mine\.py:1: GAIN_PER_NEURO is no trait"):
    apply_overrides(Config(), [("model.norm", f"{path}:Mine")])
  (tmp_path / "stream.py").write_text("class Mine: pass\n")
  with pytest.raises(UserError, match="must state OVER_ANY_AXIS = True at its top"):
    apply_overrides(Config(), [("model.qk_norm", f"{tmp_path}/stream.py:Mine")])
  (tmp_path / "gated.py").write_text("GATED = True\nclass Mine: pass\n")
  config = apply_overrides(Config(), [("model.mlp", f"{tmp_path}/gated.py:Mine")])
  assert config.model.mlp_width == 8 * -(-config.model.width // 3)


def test_a_term_is_no_part_of_two(file: Path) -> None:
  with pytest.raises(UserError, match="train.loss_term_weight=2.0: does nothing without a term"):
    apply_overrides(Config(), [("train.loss_term_weight", "2")])
  with pytest.raises(UserError, match="the one term that a block's output may have"):
    apply_overrides(Config(), [("train.loss_term", f"{file}:Mine"), ("train.tweo_weight", "1")])


def test_a_run_directory_names_its_copies_alone_and_they_are_not_run(
    file: Path, tmp_path: Path) -> None:
  """Whatever a config.json names, nothing outside its folder is read, and nothing there is run."""
  run = tmp_path / "run"
  (run / "user_code").mkdir(parents=True)
  typed = replaced(Config(), {"model.norm": f"{file}:Mine", "data.corpus": "/etc/x.py:texts",
                              "optim.name": f"{file}:Mine"})
  read = own_code.of_run(typed, run)
  assert read.model.norm == read.optim.name == f"{run}/user_code/0_mine.py:Mine"
  assert read.data.corpus == f"{run}/user_code/1_x.py:texts"
  (run / "user_code" / "0_mine.py").write_text("raise SystemExit(3)\nclass Mine: pass\n")
  with pytest.raises(UserError, match="the run directory brings, and was not run"):
    user_code.load(read.model.norm)
  # A link out of the folder is still what the directory brings.
  (run / "user_code" / "1_x.py").symlink_to(file)
  with pytest.raises(UserError, match="the run directory brings, and was not run"):
    user_code.load(f"{run}/user_code/1_x.py:Mine")


def test_what_the_user_named_may_run_where_a_run_directory_says_the_same(tmp_path: Path) -> None:
  own, copy = tmp_path / "own.py", tmp_path / "run" / "user_code" / "0_own.py"
  copy.parent.mkdir(parents=True)
  for path in (own, copy):
    path.write_text(f"# {tmp_path}\nclass Mine: pass\n")
  user_code.trust(f"{copy}:Mine")
  with pytest.raises(UserError, match="was not run"):
    user_code.load(f"{copy}:Mine")
  own_code.trust(replaced(Config(), {"model.norm": f"{own}:Mine"}))
  assert user_code.load(f"{copy}:Mine").__name__ == "Mine"
  assert user_code.shown(f"{copy}:Mine") == user_code.shown(f"{own}:Mine")
  assert str(user_code.shown(f"{own}:Mine")).startswith("own.py:Mine@")
  copy.write_text("class Mine: changed = True\n")
  assert user_code.shown(f"{copy}:Mine") != user_code.shown(f"{own}:Mine")
  with pytest.raises(UserError, match="was not run"):
    user_code.load(f"{copy}:Mine")


def test_a_fault_names_the_file_and_the_line(tmp_path: Path) -> None:
  path = tmp_path / "mine.py"
  path.write_text("def f():\n  return 1 / 0\n")
  try:
    user_code.load(f"{path}:f")()
  except ZeroDivisionError as error:
    assert user_code.fault(error) == f"{path}:2: ZeroDivisionError: division by zero"
  path.write_text("\nimport nothing_of_that_name\ndef f(): pass\n")
  with pytest.raises(UserError, match=rf"^{path}:2: ModuleNotFoundError: "):
    user_code.load(f"{path}:f")
  assert user_code.fault(ValueError("of nobody")) == ""
