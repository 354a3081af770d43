"""Imports flow one way, from room to room and inside each; the core needs few libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Room -> the rooms that it may import from, beside itself. Commands stand above everything.
ROOMS = {
    "errors": set(),
    "signals": {"errors"},
    "user_code": {"errors"},
    "variants": {"errors", "user_code"},
    "xla": set(),
    "config": {"errors", "user_code", "variants"},
    "storage": {"errors", "config", "xla"},
    "data": {"errors", "user_code", "config", "storage"},
    "models": {"errors", "variants", "xla", "config"},
    "objectives": {"errors", "user_code", "variants", "xla", "config", "models"},
    "optim": {"errors", "user_code", "variants", "xla", "config"},
    "telemetry": {"errors", "user_code", "variants", "xla", "config"},
    "quantise": {"errors", "xla", "config", "models", "objectives"},
    "interop": {"errors", "variants", "config", "storage", "models", "data"},
    "cost_model": {"errors"},
}
_CORE = {*ROOMS}
ROOMS["train"] = _CORE
ROOMS["sweep"] = _CORE | {"train"}
# What is read of run directories never asks the trainer.
ROOMS["analysis"] = _CORE - {"cost_model", "signals"}
ROOMS["scaling"] = {"errors", "config", "storage", "analysis"}
ROOMS["claims"] = {"errors", "config", "storage", "analysis", "scaling"}
ROOMS["report"] = {"errors", "variants", "config", "storage", "analysis", "scaling", "claims"}
ROOMS["commands"] = {*ROOMS}


def modules() -> dict[str, Path]:
  """Every module of the package by its dotted name, `of_jax` apart."""
  found = {}
  for path in sorted((ROOT / "of_jax").rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return found


MODULES = modules()


def imports(path: Path) -> set[str]:
  """Lists what a file imports, at its top, in functions and for type hints alone: modules of this
  project by their full names, `experiments` included."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path.relative_to(ROOT)}:{node.lineno}: import by the full name"
      for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        found.add(submodule if submodule in MODULES else node.module)
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return {name for name in found if name.split(".")[0] in ("of_jax", "experiments")}


def room_of(module: str) -> str:
  return module.split(".")[1]


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"of_jax", "of_jax.__main__"}))
def test_imports_flow_one_way(name: str) -> None:
  room = room_of(name)
  assert room in ROOMS, f"of_jax/{room} is a new room: say in ROOMS what it may import from"
  for module in imports(MODULES[name]):
    assert module.split(".")[0] != "experiments", f"{name} imports {module}, a binary"
    other = room_of(module) if "." in module else ""
    assert not other or other == room or other in ROOMS[room], (
        f"{name} imports {module}: {room} stands below {other} or beside it")


def test_the_rooms_have_an_order() -> None:
  """A room is above all that it imports from, so that the rooms can be learnt one after another."""
  above: list[str] = []
  for room, below in ROOMS.items():
    assert below <= {*above}, f"{room} imports from {below - {*above}}, which stands above it"
    above.append(room)
  folders = {p.name.removesuffix(".py") for p in (ROOT / "of_jax").iterdir()
             if p.name[0] != "_" and p.suffix in ("", ".py")}
  assert {*ROOMS} == folders


def test_no_imports_go_in_a_circle() -> None:
  """Not within a room either; those inside functions and for type hints count."""
  graph = {name: sorted(imports(path) & {*MODULES} - {name}) for name, path in MODULES.items()}
  done: set[str] = set()

  def visit(name: str, way: tuple[str, ...]) -> None:
    assert name not in way, "circle: " + " -> ".join([*way[way.index(name):], name])
    if name not in done:
      for other in graph[name]:
        visit(other, (*way, name))
      done.add(name)

  for name in graph:
    visit(name, ())


@pytest.mark.parametrize("module", (
    "of_jax.config", "of_jax.config.presets", "of_jax.storage.run_directory", "of_jax.data.corpora",
    "of_jax.data.loader", "of_jax.commands.cli", "of_jax.commands.train", "of_jax.commands.study",
    "of_jax.commands.prepare_data", "of_jax.commands.report", "of_jax.commands.runs",
    "of_jax.commands.benchmark",
    "of_jax.commands.measure", "of_jax.commands.load", "of_jax.commands.quantise",
    "of_jax.commands.variants", "of_jax.commands.coordinate_check", "of_jax.commands.fit",
    "of_jax.commands.claims_power"))
def test_a_mistake_is_found_before_jax_is_imported(module: str) -> None:
  code = f"import sys, {module}; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_core_needs_no_data_or_page_libraries() -> None:
  """Some machines with an accelerator have jax, flax, optax, orbax, absl and numpy alone."""
  code = """
import sys
for name in ('grain', 'tokenizers', 'matplotlib', 'tensorboardX', 'filelock'):
  sys.modules[name] = None
import of_jax.models.functional, of_jax.telemetry, of_jax.optim, of_jax.train.step
import of_jax.train.loop
"""
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


def test_the_step_holds_no_median_and_no_raw_activations() -> None:
  for folder in ("models", "telemetry", "train"):
    for path in (ROOT / "of_jax" / folder).rglob("*.py"):
      assert not {"jnp.median", "jnp.sort", "jnp.quantile"} & set(
          part.strip("(") for part in path.read_text().replace("(", " ").split()), path
