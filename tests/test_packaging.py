"""What the project says of itself in README, setup.cfg, constraints and .ci/run agrees."""

import ast
import configparser
import fnmatch
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = README + "".join(p.read_text() for p in sorted((ROOT / "docs").glob("*.md")))

# Where the name that is imported is not the name that is installed.
DISTRIBUTIONS = {"absl": "absl-py", "orbax": "orbax-checkpoint"}


def setup_cfg() -> configparser.ConfigParser:
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  return parser


def requirements(*extras: str) -> list[Requirement]:
  """The direct dependencies, with those of the given extras."""
  config = setup_cfg()
  texts = [config["options"]["install_requires"]]
  texts += [config["options.extras_require"][extra] for extra in extras]
  return [Requirement(line) for text in texts for line in text.split("\n") if line]


def all_extras() -> list[str]:
  return list(setup_cfg()["options.extras_require"])


def pins(name: str) -> dict[str, Version]:
  lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
  parsed = [line.split("==") for line in lines if not line.startswith("#")]
  return {canonicalize_name(project): Version(version) for project, version in parsed}


def imported_projects(*folders: str) -> dict[str, str]:
  """Every third-party project that a file in the folders imports, at its top or lazily."""
  found = {}
  for path in (p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))):
    if "golden" in path.parts:  # Run once, with the authors' libraries, in another environment.
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      modules = []
      if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom) and node.level == 0:
        modules = [node.module or ""]
      for top in (module.partition(".")[0] for module in modules):
        if top not in sys.stdlib_module_names and not (ROOT / top).is_dir():
          found[canonicalize_name(DISTRIBUTIONS.get(top, top))] = str(path.relative_to(ROOT))
  return found


def test_readme_opens_with_two_commands_and_ci_runs_the_second():
  study, tests = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)[:2]
  assert "\n" not in study + tests
  assert "-m experiments.study " in study
  assert tests.endswith("-m pytest")
  ci_command = re.search(r'^command="(.*)"$', (ROOT / ".ci/run").read_text(), re.MULTILINE)
  assert ci_command and ci_command[1] == tests


def test_readme_and_docs_name_the_binaries_and_extras_that_exist():
  table = PAGES.partition("| binary |")[2].partition("\n\n")[0]
  listed = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
  for name in listed | set(re.findall(r"-m experiments\.(\w+)", PAGES)) - {"NAME"}:
    assert (ROOT / "experiments" / f"{name}.py").is_file(), name
  binaries = {path.stem for path in (ROOT / "experiments").glob("*.py")
              if '__name__ == "__main__"' in path.read_text()}
  assert listed == binaries, "docs/commands.md lists every binary"
  extras = re.findall(r"\.\[([a-z,-]+)\]", PAGES)
  assert extras
  assert {e for group in extras for e in group.split(",")} <= set(all_extras())


def test_pyproject_holds_the_build_system_alone():
  assert list(tomllib.loads((ROOT / "pyproject.toml").read_text())) == ["build-system"]


@pytest.mark.parametrize("name", ["oldest", "newest"])
def test_constraints_pin_every_direct_dependency_within_its_bounds(name):
  pinned = pins(name)
  for requirement in requirements(*all_extras()):
    version = pinned[canonicalize_name(requirement.name)]
    assert version in requirement.specifier, f"{requirement} is pinned to {version}"


def test_oldest_constraints_are_the_lower_bounds():
  pinned = pins("oldest")
  for requirement in requirements(*all_extras()):
    for bound in requirement.specifier:
      if bound.operator == ">=":
        assert pinned[canonicalize_name(requirement.name)] == Version(bound.version), requirement


def test_every_import_is_a_declared_dependency():
  declared = {canonicalize_name(r.name) for r in requirements(*set(all_extras()) - {"dev"})}
  imported = imported_projects("of_jax", "experiments")
  assert imported.keys() <= declared, {
      name: imported[name] for name in imported.keys() - declared}
  declared |= {canonicalize_name(r.name) for r in requirements("dev")}
  in_tests = imported_projects("tests")
  assert in_tests.keys() <= declared, {name: in_tests[name] for name in in_tests.keys() - declared}


def test_every_file_of_the_package_is_shipped():
  patterns = setup_cfg()["options.package_data"]["of_jax"].split()
  for path in (ROOT / "of_jax").rglob("*"):
    if path.is_dir() or path.suffix in (".py", ".pyc"):
      continue
    name = str(path.relative_to(ROOT / "of_jax"))
    assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
  for folder in {path.parent for path in (ROOT / "of_jax").rglob("*.py")}:
    assert (folder / "__init__.py").is_file(), f"{folder} is not found as a package"
