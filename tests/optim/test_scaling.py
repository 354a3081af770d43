"""Width transfer: factors by role, what init and optimiser make of them, and the check itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax import config as config_lib
from of_jax.config import Config, OptimConfig
from of_jax.errors import UserError
from of_jax.optim import build_optimizer, lay_out, scale_init

ROOT = Path(__file__).parents[2]
ROLES = {"table": "embedding", "w": "hidden", "head": "unembedding", "norm": "norm"}
AXES = {"table": ("vocab", "embed"), "w": ("embed", "mlp"), "head": ("embed", "vocab"),
        "norm": ("channel",)}


def optim(**fields: Any) -> OptimConfig:
  return config_lib.apply_overrides(Config(), [
      (f"optim.{name}", str(value)) for name, value in fields.items()]).optim


def tree(width: int) -> dict[str, jax.Array]:
  shapes = {"table": (8, width), "w": (width, 2 * width), "head": (width, 8), "norm": (width,)}
  return {name: jnp.full(shape, 2.0) for name, shape in shapes.items()}


# At four times the base width: init, learning rate, decay; see of_jax.optim.scaling.factors.
EXPECTED = {
    "none": {name: (1, 1, 0.1) for name in ("table", "w", "head")} | {"norm": (1, 1, 0)},
    "mup": {"table": (1, 1, 0.1), "w": (0.5, 0.25, 0.1), "head": (0.25, 0.25, 0.1),
            "norm": (1, 1, 0)},
    "mup_decay": {"table": (1, 1, 0), "w": (0.5, 0.25, 0.2), "head": (0.25, 0.25, 0),
                  "norm": (1, 1, 0)},
}


@pytest.mark.parametrize("scaling", EXPECTED)
def test_factors_by_role(scaling: str) -> None:
  fields = {"scaling": scaling, "clip_norm": "none"}
  settings = optim(**fields, **({} if scaling == "none" else {"base_width": 16}))
  params = tree(64)
  scaled = scale_init(settings, params, ROLES, AXES)
  optimizer = build_optimizer(settings, lambda step: 0.1, ROLES, AXES, params)
  ones = jax.tree.map(jnp.ones_like, params)
  updates, _ = optimizer.update(ones, optimizer.init(params), params)
  for name, (init, rate, decay) in EXPECTED[scaling].items():
    np.testing.assert_allclose(scaled[name], 2.0 * init, rtol=1e-6)
    # Adam's first step is the sign; the weights are 2.
    np.testing.assert_allclose(updates[name], -0.1 * rate * (1 + decay * 2), rtol=1e-5)
  # At the base width no rule changes anything.
  if scaling != "none":
    base = lay_out(settings, ROLES, AXES, tree(16))
    assert set(jax.tree.leaves(base.multipliers)) == {1.0}
    same = scale_init(settings, tree(16), ROLES, AXES)
    assert all(np.all(leaf == 2) for leaf in jax.tree.leaves(same))


@pytest.mark.parametrize("fields, message", (
    ({"scaling": "mup"}, "optim.scaling=mup needs the width at which the rates were found"),
    ({"base_width": 64}, "config.optim.base_width=64: does nothing without optim.scaling=mup"),
    ({"scaling": "mup", "base_width": 64, "name": "lion"},
     "is a rule for Adam, not for optim.name=lion; adamp and adamw are Adam"),
    ({"scaling": "mup", "base_width": 0}, "must be at least 1"),
))
def test_a_mistake_is_one_line(fields: dict[str, Any], message: str) -> None:
  with pytest.raises(UserError) as caught:
    optim(**fields)
  assert message in str(caught.value) and "\n" not in str(caught.value)
  with pytest.raises(UserError, match="set model.tied_embeddings=false"):
    config_lib.apply_overrides(Config(), [
        ("optim.scaling", "mup"), ("optim.base_width", "64"), ("model.tied_embeddings", "true")])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "experiments.coordinate_check", *arguments],
                        cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("arguments, message", (
    ((), "--out is missing"),
    (("--out=x", "--widths=64,wide"), "--widths=64,wide: not a list of whole numbers"),
    (("--out=x", "--widths=40"), "--widths=40: not a multiple of 32"),
    (("--out=x", "--scalings=mupp"), "config.optim.scaling=mupp: not one of none, mup, mup_decay"),
))
def test_a_mistake_on_the_command_line_is_one_line(arguments: tuple[str, ...], message: str
                                                   ) -> None:
  done = run(*arguments)
  assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
  assert not (ROOT / "x").exists()


@pytest.mark.slow
def test_coordinate_check(tmp_path: Path) -> None:
  """From width 32 to 256: without a rule sizes grow, under muP they stay within a factor of 1.5."""
  done = run(f"--out={tmp_path}", "--widths=32,256", "--steps=6", "--scalings=none,mup")
  assert done.returncode == 0, done.stderr
  rows = json.loads((tmp_path / "coordinate_check.json").read_text())["rows"]
  assert (tmp_path / "coordinate_check.png").stat().st_size > 10_000
  growth = {rule: {name: large[name][-1] / small[name][-1]
                   for name in ("logits_rms", "top_singular_value_of_change")}
            for rule in ("none", "mup")
            for small, large in [[row for row in rows if row["scaling"] == rule]]}
  for name, factor in growth["none"].items():
    assert factor > 2, growth
    assert 1 / 1.5 < growth["mup"][name] < 1.5, growth
