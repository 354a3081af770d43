"""The public surface: every room of the package resolves on first use, typed, and is listed."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import of_jax

ROOT = Path(__file__).parents[1]
ROOMS = {path.name.removesuffix(".py") for path in (ROOT / "of_jax").iterdir()
         if path.name[0] != "_" and path.suffix in ("", ".py")}
# Packages with an `__all__` of their own.
PUBLIC = ("config", "interop", "models", "objectives", "optim", "quantise", "telemetry", "train")


def test_every_room_is_an_attribute() -> None:
  assert set(of_jax.__all__) == ROOMS | {"baselines", "presets", "run_directory"}
  assert {*of_jax.__all__} <= {*dir(of_jax)}
  for name in ROOMS:
    assert getattr(of_jax, name) is importlib.import_module(f"of_jax.{name}")
  with pytest.raises(AttributeError, match="no attribute 'telemetri'"):
    of_jax.telemetri


def test_it_costs_no_jax_until_it_is_used() -> None:
  """And one import is enough for what a reader types first."""
  code = """
import sys, of_jax
dir(of_jax), of_jax.config.Config, of_jax.quantise.Scheme
from of_jax import presets, run_directory
assert presets.__name__ == "of_jax.config.presets" and run_directory.read_lines
assert "build_network" in dir(of_jax.models)
assert not {"jax", "flax", "optax"} & set(sys.modules)
import numpy
assert float(of_jax.telemetry.measure(numpy.ones((1, 2, 8)))["kurtosis"]) == 1
assert of_jax.models.build_network and "jax" in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("room", PUBLIC)
def test_what_a_room_lists_is_there(room: str) -> None:
  module = importlib.import_module(f"of_jax.{room}")
  assert len(module.__all__) == len({*module.__all__})
  for name in module.__all__:
    assert getattr(module, name, None) is not None, f"of_jax.{room}.{name}"
  with pytest.raises(AttributeError):
    getattr(module, "nothing_of_this_name")


def test_types_are_shipped() -> None:
  """PEP 561's marker is in the package, and in what setup.cfg has a wheel contain."""
  assert (ROOT / "of_jax" / "py.typed").is_file()
  data = (ROOT / "setup.cfg").read_text().partition("[options.package_data]")[2].partition("[")[0]
  assert "py.typed" in data.split()
