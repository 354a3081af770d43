"""Imports flow one way: config, data, models, optim, telemetry, train; and analysis apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module may import from its own line and from those above it.
LAYERS = (
    ("errors",), ("variants", "tpu", "placement"), ("reductions",),
    ("config_images", "config_model", "config_optim", "config_telemetry", "config_values"),
    ("config_rules",), ("config_sections",), ("config",),
    ("baselines", "config_members", "presets", "run_directory"), ("remote",), ("data",),
    ("models",), ("quantise",), ("interop",), ("optim", "telemetry"), ("train",))
ABOVE = {name: {n for layer in LAYERS[:i + 1] for n in layer}
         for i, names in enumerate(LAYERS) for name in names}
# Analysis reads run directories and restores their checkpoints, never the trainer.
ABOVE["analysis"] = ABOVE["train"] - {"train"} | {"analysis"}
READ_OF_TRAIN = {"train.checkpoint", "train.digest", "train.loss"}
# Binaries stand above everything and may not be imported; models know nothing of telemetry.
ABOVE["models"] -= {"baselines", "config_members", "data", "presets", "run_directory", "remote"}
ABOVE["telemetry"] -= {"data", "models", "optim"}
ABOVE["optim"] -= {"data", "models", "telemetry", "interop"}
# Foreign weights are read for whoever measures or trains them, who knows nothing of files.
ABOVE["interop"] -= {"data", "presets", "run_directory", "remote"}
ABOVE["telemetry"] -= {"interop"}
ABOVE["train"] -= {"interop"}
# But for the one file that finds the parameters which a run starts from.
READS_FOREIGN = "train/start.py"


def imports(path: Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      found |= ({f"of_jax.{alias.name}" for alias in node.names} if node.module == "of_jax"
                else {node.module})
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return found


@pytest.mark.parametrize("path", sorted((ROOT / "of_jax").rglob("*.py")),
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
  place = path.relative_to(ROOT / "of_jax").parts[0].removesuffix(".py")
  if place == "__init__":
    return
  for module in imports(path):
    top, _, rest = module.partition(".")
    assert top != "experiments", module
    # The rules name Config in their type hints alone.
    hint = place.startswith("config_") and rest == "config"
    if top == "of_jax" and rest and not hint:
      reads = place == "analysis" and ".".join(rest.split(".")[:2]) in READ_OF_TRAIN
      reads |= path.as_posix().endswith(READS_FOREIGN) and rest.split(".")[0] == "interop"
      assert reads or rest.split(".")[0] in ABOVE[place], f"{path} imports {module}"


@pytest.mark.parametrize("module", (
    "of_jax.config", "of_jax.presets", "of_jax.run_directory", "of_jax.data.corpora",
    "of_jax.data.loader", "experiments.cli", "experiments.train", "experiments.study",
    "experiments.prepare_data", "experiments.report", "experiments.benchmark",
    "experiments.measure", "experiments.load", "experiments.quantise",
    "experiments.variants", "experiments.coordinate_check"))
def test_a_mistake_is_found_before_jax_is_imported(module: str) -> None:
  code = f"import sys, {module}; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_core_needs_no_data_or_page_libraries() -> None:
  """Some machines with an accelerator have jax, flax, optax, orbax, absl and numpy alone."""
  code = """
import sys
for name in ('grain', 'tokenizers', 'plotly', 'matplotlib', 'tensorboardX', 'filelock'):
  sys.modules[name] = None
import of_jax.models.functional, of_jax.telemetry, of_jax.optim, of_jax.train.step
import of_jax.train.loop
"""
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


def test_no_file_holds_two_things() -> None:
  for path in [*(ROOT / "of_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
    lines = len(path.read_text().splitlines())
    assert lines <= (300 if "models" in path.parts else 400), f"{path}: {lines} lines"


def test_the_step_holds_no_median_and_no_raw_activations() -> None:
  for folder in ("models", "telemetry", "train"):
    for path in (ROOT / "of_jax" / folder).rglob("*.py"):
      assert not {"jnp.median", "jnp.sort", "jnp.quantile"} & set(
          part.strip("(") for part in path.read_text().replace("(", " ").split()), path
