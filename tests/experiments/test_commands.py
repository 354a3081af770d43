"""Commands have their home in the package, and work from any folder, with configs and studies."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import of_jax
from of_jax import commands
from of_jax.commands import cli, studies
from of_jax.config import Config

ROOT = Path(__file__).parents[2]


def say(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "of_jax", *arguments], cwd=folder, text=True,
                        capture_output=True, timeout=300,
                        env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_clone_has_an_entry_for_every_command() -> None:
  entries = {path.stem: path.read_text() for path in (ROOT / "experiments").glob("[!_]*.py")}
  assert {*entries} == {*commands.names()}
  for name, text in entries.items():
    assert text.endswith(f'start("{name}")\n'), name


def test_pip_install_gives_a_command() -> None:
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  name, _, target = parser["options.entry_points"]["console_scripts"].strip().partition(" = ")
  module, _, function = target.partition(":")
  assert (name, module) == ("of_jax", "of_jax.commands")
  assert callable(getattr(sys.modules[module], function))


def test_commands_are_listed_and_a_wrong_one_is_a_line() -> None:
  assert {*commands.names()} <= {*commands.listed().split()}
  said = say(ROOT, "trian")
  assert (said.returncode, said.stdout) == (1, "")
  assert said.stderr == "error: trian: no such command; did you mean train?\n"


def test_a_command_works_from_any_folder(tmp_path: Path) -> None:
  said = say(tmp_path, "--version")
  assert said.stdout == f"of_jax {of_jax.__version__}\n"
  said = say(tmp_path, "study", "--study=op_block", "--scale=smoke", "--root=x", "--dry_run")
  assert said.returncode == 0 and "op_lr3e-3_scale8_seed1" in said.stdout, said.stderr
  assert not list(tmp_path.iterdir())


def test_configs_of_the_package_have_names_and_a_users_file_comes_first(
    tmp_path: Path, monkeypatch) -> None:
  monkeypatch.chdir(tmp_path)
  smoke = cli.load_config("smoke")
  assert isinstance(smoke, Config)
  assert cli.load_config("experiments/configs/smoke.py") == smoke == cli.load_config("smoke.py")
  assert cli.load_config("ladder:small").model.width != smoke.model.width
  (tmp_path / "smoke.py").write_text(
      "from of_jax import presets\ndef get_config(): return presets.preset('small')\n")
  assert cli.load_config("smoke.py") == cli.load_config("ladder:small")
  # A declared study is what it is, whatever lies in the folder.
  folder = tmp_path / "experiments" / "configs"
  folder.mkdir(parents=True)
  (folder / "smoke.py").write_text("nonsense")
  assert studies.configs(studies.load("op_block", "smoke"))
