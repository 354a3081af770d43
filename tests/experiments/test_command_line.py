"""First things that a new user types: help, version, a config file, words of other libraries."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import of_jax
from of_jax import config as config_lib
from of_jax.commands import cli, help_text
from of_jax.config import baselines, presets
from of_jax.errors import UserError

ROOT = Path(__file__).parents[2]
GOOD = """import dataclasses
from of_jax.config import presets


def get_config(width):
  config = presets.smoke()
  return dataclasses.replace(config, model=dataclasses.replace(config.model, width=int(width)))
"""


def say(*arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "experiments.train", *arguments], cwd=ROOT,
                        capture_output=True, text=True, timeout=120)


def test_help_shows_twenty_fields_and_helpfull_all() -> None:
  assert len(config_lib.USUAL) == len({*config_lib.USUAL} & {*config_lib.fields()}) == 20
  for flag, count in (("--help", 20), ("--helpfull", len(config_lib.fields()))):
    said = say(flag)
    assert said.returncode == 0
    assert sum(line.startswith("  --config.") for line in said.stdout.splitlines()) == count
    assert "--version" in said.stdout
  assert "\nmodel:\n" in said.stdout and "\nmesh:\n" in said.stdout
  assert say("--version").stdout == f"of_jax {of_jax.__version__}\n"


def test_config_alone_lists_every_file_and_size() -> None:
  for arguments in (["--config"], ["--config", "--workdir=x"], ["--config="]):
    said = say(*arguments)
    assert said.returncode == 0 and said.stdout == help_text.presets() + "\n"
  words = said.stdout.replace(",", " ").split()
  assert {*presets.SIZES, *presets.MLP_SCALES, *baselines.NAMES} <= {*words}
  for file in help_text.CONFIGS.glob("[!_]*.py"):
    assert f"  {file.stem}" in said.stdout


@pytest.mark.parametrize("change, message", (
    (("  return", "  config.model.width = 3\n  return"),
     ", line 7: cannot assign to field 'width'"),
    (("width=int(width)", "widht=3"), ", line 7: model.widht: no such field; did you mean config."
     "model.width?"),
    (("import dataclasses", "import datclasses"), ", line 1: fails with ModuleNotFoundError"),
    (("  return dataclasses", "  return (dataclasses"), ", line 7: fails with SyntaxError"),
    (("int(width)", "int('x')"), ", line 7: fails with"),
    (("import dataclasses", "raise SystemExit(0)"), ", line 1: fails with SystemExit: 0"),
    (("  return", "  raise SystemExit\n  return"), ", line 7: fails with SystemExit")))
def test_a_mistake_in_a_config_file_is_one_line(
    tmp_path: Path, change: tuple[str, str], message: str) -> None:
  file = tmp_path / "mine.py"
  file.write_text(GOOD)
  assert cli.load_config(f"{file}:64").model.width == 64
  file.write_text(GOOD.replace(*change))
  with pytest.raises(UserError) as error:
    cli.load_config(f"{file}:64")
  assert f"{file}{message}" in str(error.value)
  if "assign" in message:
    assert "dataclasses.replace(config" in str(error.value)


def test_a_section_of_another_type_is_one_line(tmp_path: Path) -> None:
  file = tmp_path / "mine.py"
  file.write_text(GOOD.replace("model=dataclasses.replace(config.model, width=int(width))",
                               "model=None"))
  with pytest.raises(UserError, match="Config whose model is NoneType, not ModelConfig"):
    cli.load_config(f"{file}:64")


@pytest.mark.parametrize("closed", (">&-", "2>&-", ">&- 2>&- <&-"))
def test_streams_that_are_closed(tmp_path: Path, closed: str) -> None:
  # What is written must not get the number of standard output.
  file = tmp_path / "runs.csv"
  command = f"{sys.executable} -m experiments.runs --root=tests/golden/run_75cbc07 --csv={file}"
  assert subprocess.run(f"{command} {closed}", shell=True, cwd=ROOT, timeout=120).returncode == 0
  assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("name, value", (("JAX_PLATFORMS", "nonsense"),
                                         ("JAX_NUM_CPU_DEVICES", "x")))
def test_an_environment_that_jax_does_not_start_in(tmp_path: Path, name: str, value: str) -> None:
  command = [sys.executable, "-m", "experiments.train", "--config=smoke", f"--workdir={tmp_path}"]
  said = subprocess.run(command, cwd=ROOT, env={**os.environ, name: value}, capture_output=True,
                        text=True, timeout=120)
  assert said.returncode == 1 and not said.stdout
  assert said.stderr.startswith("error: JAX does not start") and said.stderr.count("\n") == 1
  assert f"{name}={value}" in said.stderr


@pytest.mark.parametrize("field, value, meant", (
    ("model.block", "prenorm", "pre"), ("model.block", "Pre-LN", "pre"),
    ("model.norm", "LayerNorm", "layer"), ("model.norm", "rms_norm", "rms"),
    ("model.positions", "RoPE", "rotary")))
def test_words_of_others(field: str, value: str, meant: str) -> None:
  with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
    config_lib.apply_overrides(config_lib.Config(), [(field, value)])


def test_a_field_without_its_prefix() -> None:
  said = say("--config=experiments/configs/smoke.py", "--workdir=x", "--model.width=64")
  assert said.returncode == 1
  assert said.stderr == ("error: --model.width=64: no such flag; did you mean "
                         "--config.model.width=64?\n")


def test_a_name_on_a_hub() -> None:
  with pytest.raises(UserError, match="nothing is fetched"):
    of_jax.interop.open_source("EleutherAI/pythia-70m")
  for path in ("docs/none", "/no/where", "none", "a/b.gguf"):
    with pytest.raises(UserError) as error, contextlib.redirect_stdout(io.StringIO()):
      of_jax.interop.open_source(path)
    assert "fetched" not in str(error.value)


def test_what_nobody_foresaw_is_one_line_and_a_file(tmp_path: Path) -> None:
  program = ("import sys; from of_jax.commands import cli; sys.argv = ['x']\n"
             "cli.run(lambda: [][1])")
  said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                        env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=120)
  file, = tmp_path.glob("of_jax_traceback_*.txt")
  assert said.returncode == 1 and said.stderr.count("\n") == 1
  assert said.stderr.startswith("error: a fault of of_jax: IndexError at cli.py:")
  assert said.stderr.endswith(f"list index out of range; please report it with {file}\n")
  assert "Traceback" in file.read_text() and "cli.run(lambda: [][1])" not in said.stdout
  said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                        env={**os.environ, "OF_JAX_TRACEBACK": "1"}, timeout=120)
  assert said.returncode == 1 and "Traceback (most recent call last)" in said.stderr
