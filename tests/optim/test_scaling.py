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
from of_jax import variants
from of_jax.config import Config, OptimConfig
from of_jax.config.roles import TRAINED_ROLES
from of_jax.errors import UserError
from of_jax.models.functional import build_network
from of_jax.optim import build_optimizer, describe, lay_out, scale_init

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
    "mup": {"table": (1, 1, 0.1), "w": (0.5, 0.25, 0.4), "head": (0.25, 0.25, 0.4),
            "norm": (1, 1, 0)},
    "mup_decay": {"table": (1, 1, 0), "w": (0.5, 0.25, 0.2), "head": (0.25, 0.25, 0),
                  "norm": (1, 1, 0)},
}


@pytest.mark.parametrize("name", ("adamw", "adamp"))
@pytest.mark.parametrize("scaling", EXPECTED)
def test_factors_by_role(scaling: str, name: str) -> None:
  """A step of both optimisers that the rules hold for; tests/fidelity has the authors' numbers."""
  # No weight counts as scale-invariant, so that AdamP is Adam.
  fields = {"scaling": scaling, "clip_norm": "none", "name": name,
            **({"delta": 0} if name == "adamp" else {})}
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
    assert set(jax.tree.leaves(base.decays)) == {0.0, 1.0}
    same = scale_init(settings, tree(16), ROLES, AXES)
    assert all(np.all(leaf == 2) for leaf in jax.tree.leaves(same))


@pytest.mark.parametrize("fields", (
    {"model.attention_gate": "head"}, {"model.block": "gated_norm", "model.norm_gate_rank": "8"},
    {"model.attention_gate": "element", "model.mlp": "swiglu", "model.embedding_projection": "true"}
))
def test_hidden_is_what_grows_on_both_sides(fields: dict[str, str]) -> None:
  """By the shapes at two widths, as the authors' package tells it: (init, rate, decay)."""
  rows = {}
  for width in (32, 128):
    config = config_lib.apply_overrides(Config(), [
        ("model.width", str(width)), ("model.heads", str(width // 16)), ("model.depth", "2"),
        ("data.corpus", "tokens:none"), ("data.vocab_size", "64"), ("optim.scaling", "mup"),
        ("optim.base_width", "32"), *fields.items()])
    network = build_network(config)
    layout = lay_out(config.optim, network.roles, network.axes, network.shapes)
    rows[width] = describe(config.optim, layout)
  kinds = {}
  for name, small in rows[32].items():
    large = rows[128][name]
    inputs, outputs = np.less(small["matrices"][1:], large["matrices"][1:]) if (
        small["matrices"]) else (False, True)
    kinds[name] = (bool(inputs), bool(outputs)) if small["role"] == "hidden" else None
    # A vector, a table and a bias have no side of inputs that grows.
    expected = {(True, True): (0.5, 0.25, 4), (True, False): (0.25, 0.25, 4)}.get(
        (inputs, outputs), (1, 1, 1))
    found = large["init_multiplier"], large["lr_multiplier"], large["weight_decay"] / (
        config.optim.weight_decay)
    assert found == (*expected[:2], expected[2] if large["weight_decay"] else 0), name
    assert large["weight_decay"] or large["role"] not in ("hidden", "unembedding"), name
  assert "norm_gate_rank" not in str(fields) or {(True, False), (False, True)} < {*kinds.values()}


@pytest.mark.parametrize("width", (16, 32, 256))
def test_decay_of_a_step_against_the_width(width: int) -> None:
  """mup: lr wd at every width and role. mup_decay: m^-1/2 of it in hidden matrices, else none."""
  roles = TRAINED_ROLES
  leaves = {role: jnp.ones((width, width) if role in ("embedding", "hidden", "unembedding") else
                           (width,)) for role in roles}
  axes = {role: {"embedding": ("vocab", "embed"), "hidden": ("embed", "mlp"),
                 "unembedding": ("embed", "vocab")}.get(role, ("channel",)) for role in roles}
  expected = {"mup": {role: 1.0 for role in roles},
              "mup_decay": {role: (width / 16) ** -0.5 if role == "hidden" else 0.0
                            for role in roles}}
  for scaling, shares in expected.items():
    # A rate by role is one for the decay too, as in PyTorch's groups of parameters.
    settings = optim(scaling=scaling, base_width=16, clip_norm="none", weight_decay=0.3,
                     decay_roles=",".join(roles), lr_multipliers="hidden=0.5,bias=3")
    optimizer = build_optimizer(settings, lambda step: 0.1, {role: role for role in roles}, axes,
                                leaves)
    zeros = jax.tree.map(jnp.zeros_like, leaves)
    updates, _ = optimizer.update(zeros, optimizer.init(leaves), leaves)
    for role, share in shares.items():
      share *= {"hidden": 0.5, "bias": 3.0}.get(role, 1.0)
      np.testing.assert_allclose(updates[role], -0.1 * 0.3 * share, rtol=1e-6, err_msg=role)
    listed = describe(settings, lay_out(settings, {role: role for role in roles}, axes, leaves))
    assert {role: row["weight_decay"] * row["lr_multiplier"] for role, row in listed.items()
            } == pytest.approx({role: 0.3 * share * {"hidden": 0.5, "bias": 3.0}.get(role, 1.0)
                                for role, share in shares.items()})


@pytest.mark.parametrize("name", sorted(variants.names("optim/optimizers")))
def test_a_rate_by_role_is_a_rate(name: str) -> None:
  """A factor of 0.3 gives, decay included, what 0.3 of the rate gives: five large steps."""
  random = np.random.default_rng(0)
  start = {"w": jnp.asarray(random.standard_normal((6, 4)), jnp.float32)}
  gradients = [{"w": jnp.asarray(random.standard_normal((6, 4)), jnp.float32)} for _ in range(5)]

  def after(**fields: Any) -> np.ndarray:
    settings = optim(name=name, weight_decay=0.9, clip_norm="none", **fields)
    optimizer = build_optimizer(settings, lambda step: settings.learning_rate, {"w": "hidden"},
                                {"w": ("embed", "mlp")}, start)
    params, state, update = start, optimizer.init(start), jax.jit(optimizer.update)
    for g in gradients:
      updates, state = update(g, state, params)
      params = jax.tree.map(jnp.add, params, updates)
    return np.asarray(params["w"])

  by_role = after(learning_rate=0.5, lr_multipliers="hidden=0.3")
  np.testing.assert_allclose(by_role, after(learning_rate=0.15), rtol=1e-4, atol=1e-5)
  assert np.abs(by_role - start["w"]).max() > 0.05


@pytest.mark.parametrize("fields, message", (
    ({"scaling": "mup"}, "optim.scaling=mup needs the width at which the rates were found"),
    ({"base_width": 64}, "config.optim.base_width=64: does nothing without optim.scaling=mup"),
    ({"scaling": "mup", "base_width": 64, "name": "lion"},
     "is a rule for Adam, not for optim.name=lion; adamp and adamw are Adam"),
    ({"scaling": "mup", "base_width": 0}, "must be at least 1"),
    ({"decay_norm_offsets": "false"}, "config.optim.decay_norm_offsets=False: no norm decays"),
))
def test_a_mistake_is_one_line(fields: dict[str, Any], message: str) -> None:
  with pytest.raises(UserError) as caught:
    optim(**fields)
  assert message in str(caught.value) and "\n" not in str(caught.value)
  with pytest.raises(UserError, match="set model.tied_embeddings=false"):
    config_lib.apply_overrides(Config(), [
        ("optim.scaling", "mup"), ("optim.base_width", "64"), ("model.tied_embeddings", "true")])
  with pytest.raises(UserError, match="config.model.attention_init=uniform: already goes by the"):
    config_lib.apply_overrides(Config(), [
        ("optim.scaling", "mup"), ("optim.base_width", "64"), ("model.attention_init", "uniform")])


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
