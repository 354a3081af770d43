"""Odd input: refused in one line, before any work, and nothing that it brings is run."""

import json
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

from of_jax.analysis import replay, runs
from of_jax.config import Config, apply_overrides, fields
from of_jax.config.declare import LARGEST_WHOLE
from of_jax.config.fields import hints
from of_jax.config.paths import check_file, check_output_file, check_output_folder, expanded
from of_jax.config.values import whole
from of_jax.errors import UserError, one_line, refusing
from tests.faults import warm

ROOT = Path(__file__).parents[2]


def test_every_number_has_a_range() -> None:
  for path, field in fields().items():
    hint = hints(path)[field.name]
    kinds = {hint, *typing.get_args(hint)} | {
        kind for part in typing.get_args(hint) for kind in typing.get_args(part)}
    if {int, float} & kinds and bool not in kinds:
      ranges = field.metadata["ranges"]
      assert ranges, f"{path} has no range"
      if int in kinds:
        largest = min(min(one.high, one.most) for one in ranges)
        assert largest <= LARGEST_WHOLE, f"{path} may be {largest}"


@pytest.mark.parametrize("setting, what", (
    ("model.depth=0", "must be at least 1"), ("model.width=1000000007", "must be at most"),
    ("model.attention_window=4294967296", "must be at most 2,147,483,647"),
    ("telemetry.cadences=gram=\u00b2", "is not of the form"),
    ("model.heads=\u00b2", "whole number"), ("model.heads=\u0663", "whole number"),
    ("optim.eps=nan", "not a finite number"),
    ("optim.eps=1e400", "not a finite number"), ("train.steps=1000000000", "would keep"),
    ("optim.learning_rate=1e39", "must be at most"), ("model.init_std=0", "set one of them"),
    ("data.cache_dir=", "give a folder"), ("data.cache_dir=~nobody_of_that_name/x", "no such user"),
    ("data.tokenizer=a\0b", "NUL"), ("model.beta=-1e31", "must be at least -1e")))
@pytest.mark.parametrize("block", ("op", "residual_scaled"))
def test_numbers_are_refused_before_they_are_used(setting: str, what: str, block: str) -> None:
  alpha = [("model.mlp_input_scale", "none")] if block == "op" else []
  if "init_std" in setting and not alpha:
    pytest.skip("of the block op")
  path, _, text = setting.partition("=")
  with pytest.raises(UserError, match=what):
    apply_overrides(Config(), [("model.block", block), *alpha, ("telemetry.level", "full"),
                               (path, text)])


def test_messages_are_one_line() -> None:
  long = UserError("a\nb\t\0\udcff " + "x" * 1_000 + " " + "y z " * 5_000)
  assert "\n" not in str(long) and "\\x00\\udcff" in str(long) and len(str(long)) < 3_200
  assert one_line("a" * 1_000).count("a") < 240
  assert whole("12") == 12 and whole("\u00b2") is whole("") is whole("-1") is None


def test_a_panic_is_refused_too() -> None:
  class Panic(BaseException):
    pass

  with pytest.raises(UserError, match="x: cannot be read: Panic: no"):
    with refusing("x"):
      raise Panic("no")
  with pytest.raises(KeyboardInterrupt):
    with refusing("x"):
      raise KeyboardInterrupt


def test_files_are_regular_ones(tmp_path: Path) -> None:
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "link").symlink_to(tmp_path / "nothing")
  for path, what in (("pipe", "is a pipe"), ("link", "a link to nothing"), (".", "is a folder"),
                     ("none", "no such file"), ("/dev/zero", "is a device"),
                     ("/dev/null/x", "no such file")):
    with pytest.raises(UserError, match=f"^--text: {what}"):
      check_file("--text", tmp_path / path)
  with pytest.raises(UserError, match="too long"):
    expanded("x" * 300)
  assert expanded("~/x") == Path.home() / "x"


def test_an_output_folder_that_cannot_be_made_is_known_before(tmp_path: Path) -> None:
  (tmp_path / "file").write_text("")
  (tmp_path / "link").symlink_to(tmp_path / "nothing")
  for path, what in (("file", "is a file"), ("file/x", "is a file"), ("link", "a link to nothing"),
                     ("link/x", "a link to nothing"), ("x" * 256, "longer than"),
                     ("/proc/nothing", "cannot be written"), ("/dev/null/x", "is a device")):
    with pytest.raises(UserError, match=what):
      check_output_folder("--out", tmp_path / path)
    with pytest.raises(UserError):
      check_output_file("--out", tmp_path / path / "x.json")
  assert check_output_folder("--out", tmp_path / "a" / "b") == tmp_path / "a" / "b"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.fixture
def run_with_code(tmp_path: Path) -> Path:
  """A copy of the golden run whose directory brings a metric that leaves a file."""
  shutil.copytree(ROOT / "tests" / "golden" / "run_75cbc07", tmp_path, dirs_exist_ok=True)
  run = tmp_path / "run"
  (run / "user_metrics").mkdir()
  code = (f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).write_text('ran')\n"
          "def share(x_TxD):\n  return (abs(x_TxD) > 6).mean()\n")
  (run / "user_metrics" / "0_own.py").write_text(code)
  config = json.loads((run / "config.json").read_text())
  config["telemetry"]["user_metrics"] = ["gone/own.py:share"]
  config["telemetry"]["metrics"] = ["kurtosis", "share"]
  (run / "config.json").write_text(json.dumps(config))
  return run


def test_a_run_directory_s_python_is_run_on_request_alone(run_with_code: Path) -> None:
  batch = np.arange(16, dtype=np.int32).reshape(1, 16) % 8
  batches = [{"inputs": batch, "targets": batch, "weights": np.ones((1, 16), np.float32)}]
  left_out = replay.restore(run_with_code)
  assert left_out.config.telemetry.user_metrics == ()
  found = left_out.measure(batches, ("resid_pre",), ("kurtosis",))
  assert "share" not in found["telemetry"]["resid_pre"]
  assert not (run_with_code.parent / "ran").exists()
  asked = replay.restore(run_with_code, run_user_code=True)
  found = asked.measure(batches, ("resid_pre",), ("kurtosis", "share"))
  assert "share" in found["telemetry"]["resid_pre"] and (run_with_code.parent / "ran").exists()


@pytest.mark.parametrize("content", (
    "{}", "[]", "7", "[" * 100_000, '{"model": []}',
    '{"model": {"width": ' + "1" + "0" * 400 + "}}",
    '{"model": {"depth": 1000000}}', '{"optim": {"eps": 1e999}}', '{"model": {"norm_eps": "x"}}'))
def test_a_config_of_another_shape_is_refused(content: str, tmp_path: Path) -> None:
  (tmp_path / "config.json").write_text(content)
  if content == "{}":
    assert runs.read_config(tmp_path) == apply_overrides(Config(), ())
    return
  with pytest.raises(UserError, match="config.json: ") as caught:
    runs.read_config(tmp_path)
  assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("name, count", (
    ("mangle", 24), ("fuzz", 3), pytest.param("mangle", 300, marks=pytest.mark.slow),
    pytest.param("fuzz", 200, marks=pytest.mark.slow)))
def test_a_sample_ends_in_no_fault(name: str, count: int) -> None:
  ended = subprocess.run([sys.executable, "-m", f"tests.faults.{name}", f"--count={count}",
                          "--seed=20261127"], cwd=ROOT, capture_output=True, text=True,
                         timeout=30 * count + 120)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  all_, *counts = ended.stdout.splitlines()[-1].strip("| ").split(" | ")
  assert all_ == "all" and sum(map(int, counts)) >= count and int(counts[1]) > 0


def test_a_fault_is_seen() -> None:
  """The harness tells the ends apart."""
  code = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
          "from tests.faults import test_input\ntest_input.tell_apart()")
  ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
  assert ended.stdout.split() == ["accepted", "crash", "hang", "refused", "traceback"], ended.stderr


def tell_apart() -> None:
  """Prints how cases of every kind end, in a process without threads."""
  def raises() -> None:
    raise ValueError("a fault")

  def refuses() -> None:
    raise UserError("a line")

  def hangs() -> None:
    while True:
      pass

  found: list[str] = []
  cases = [warm.Case("", "", run, 1.0) for run in (raises, refuses, hangs, os.abort, list)]
  warm.run(cases, 2, lambda end: found.append(end.word))  # type: ignore[arg-type]
  print(*sorted(found))
