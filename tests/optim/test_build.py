"""From config to optimiser: which field belongs to which, factors by role, the table of leaves."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from of_jax import config as config_lib
from of_jax import variants
from of_jax.config import Config, OptimConfig, apply_overrides
from of_jax.config.rules.optim import all_own_fields, own_fields
from of_jax.errors import UserError
from of_jax.models.functional import build_network, named_leaves
from of_jax.optim import build_optimizer, describe, lay_out, learning_rate_schedule
from of_jax.storage import run_directory
from of_jax.train import provenance

MakeConfig = Callable[..., Config]
NAMES = variants.names("optim/optimizers")


def overridden(*texts: str) -> Config:
  return apply_overrides(Config(), [tuple(t.split("=", 1)) for t in texts])  # type: ignore[misc]


@pytest.mark.parametrize("texts, message", (
    (("optim.delta=0.1",),
     "config.optim.delta=0.1: optim.name=adamw does not read it; adamp and sgdp do"),
    (("optim.name=sgd", "optim.b1=0.9"), "config.optim.b1=0.9: optim.name=sgd does not read it"),
    (("optim.name=lion", "optim.eps=1e-6"), "optim.name=lion does not read it"),
    (("optim.name=muom",), "did you mean muon?"),
    (("optim.name=muon", "optim.muon_scale=big"), "not one of width, rms"),
    (("optim.name=muon", "optim.newton_schulz_steps=0"), "must be at least 1"),
    (("optim.name=sinkgd", "optim.norms=rows,colums"),
     "not a list of rows, columns, matrix, spectrum"),
    (("optim.name=sgd", "optim.momentum=1"), "must be at least 0 and below 1"),
    (("optim.name=sgd", "optim.momentum=0", "optim.nesterov=true"),
     "does nothing without optim.momentum"),
    (("optim.name=adamp", "optim.wd_ratio=2"), "must lie between 0 and 1"),
    (("optim.name=adamp", "optim.nesterov=maybe"), "not true or false or none"),
    (("optim.lr_multipliers=hiden=2",), "hiden is not a parameter role; did you mean hidden?"),
    (("optim.lr_multipliers=hidden",), "not a role and a number that is not negative"),
    (("optim.lr_multipliers=hidden=-1",), "not a role and a number that is not negative"),
    (("optim.lr_multipliers=hidden=1,hidden=2",), "hidden is named twice"),
    (("optim.projection_roles=hiden",), "hiden is not a parameter role"),
    (("optim.projection_gains=joint",), "set optim.projection_every=1"),
    (("optim.projection_every=0",), "must be at least 1"),
    (("optim.projection_every=1", "optim.projection_decay=0.5"),
     "is part of optim.projection_gains=decay"),
    (("optim.decay_steps=5",), "is part of optim.schedule=wsd and does nothing in linear"),
    (("optim.decay_shape=one_minus_sqrt",), "is part of optim.schedule=wsd"),
    (("optim.schedule=wsd", "optim.decay_steps=2000"), "is longer than the training"),
))
def test_a_mistake_is_one_line(texts: tuple[str, ...], message: str) -> None:
  with pytest.raises(UserError) as caught:
    overridden(*texts)
  assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_resolves_to_its_own_fields_and_reads_them(name: str, monkeypatch: pytest.MonkeyPatch
                                                   ) -> None:
  """Set where the optimiser's file states it, None elsewhere; `from_config` reads them all."""
  optim = overridden(f"optim.name={name}").optim
  assert {field: getattr(optim, field) for field in own_fields(name)} == own_fields(name)
  others = set(all_own_fields()) - set(own_fields(name))
  assert all(getattr(optim, field) is None for field in others)
  read: set[str] = set()

  def spy(self: OptimConfig, field: str) -> Any:
    if "optimizers" in inspect.currentframe().f_back.f_code.co_filename:  # type: ignore[union-attr]
      read.add(field)
    return object.__getattribute__(self, field)

  params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
  monkeypatch.setattr(OptimConfig, "__getattribute__", spy)
  build_optimizer(optim, lambda step: 0.1, {"w": "hidden", "b": "bias"},
                  {"w": ("embed", "mlp"), "b": ("mlp",)}, params)
  assert read == set(own_fields(name))


def test_every_own_field_is_of_the_config() -> None:
  """And starts as None, so that it is known whether it was set."""
  defaults = {field.name: field.default for field in dataclasses.fields(OptimConfig)}
  assert all(defaults[field] is None for field in all_own_fields())


def test_learning_rate_by_role() -> None:
  """A role's factor scales its whole step, decay included; zero freezes it."""
  params = {"w": jnp.full((2, 3), 2.0), "t": jnp.full((4, 2), 2.0), "b": jnp.full((3,), 2.0)}
  roles = {"w": "hidden", "t": "embedding", "b": "bias"}
  axes = {"w": ("embed", "mlp"), "t": ("vocab", "embed"), "b": ("mlp",)}
  grads = jax.tree.map(jnp.ones_like, params)

  def step(*texts: str) -> Any:
    optim = overridden("optim.clip_norm=none", *texts).optim
    optimizer = build_optimizer(optim, lambda step: 0.1, roles, axes, params)
    return optimizer.update(grads, optimizer.init(params), params)[0]

  plain, scaled = step(), step("optim.lr_multipliers=embedding=0.25,bias=0")
  np.testing.assert_allclose(plain["w"], -0.1 * (1 + 0.1 * 2), rtol=1e-5)
  np.testing.assert_array_equal(scaled["w"], plain["w"])
  np.testing.assert_allclose(scaled["t"], plain["t"] / 4, rtol=1e-6)
  np.testing.assert_array_equal(scaled["b"], 0)
  assert np.all(plain["b"] != 0)


def test_a_leaf_without_a_role_stops_the_run() -> None:
  shapes = {"a": {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}
  for role in (None, "hiden"):
    with pytest.raises(ValueError, match=f"parameter a/w has the role {role}, not one of"):
      build_optimizer(overridden().optim, optax.constant_schedule(0.1), {"a": {"w": role}},
                      {"a": {"w": ("embed", "mlp")}}, shapes)


def test_the_table_is_in_config_json(make_config: MakeConfig, tmp_path: Path) -> None:
  """Every leaf with its role, matrices, decay, factor; the file still reads back as the config."""
  config = make_config(optim__lr_multipliers="embedding=0.5", optim__projection_every=2,
                       optim__decay_roles="hidden")
  network = build_network(config)
  provenance.write_config(tmp_path, config, network)
  saved = run_directory.read_json(tmp_path / "config.json")
  assert config_lib.from_dict(saved) == config
  table = saved["parameters"]
  assert table.keys() == named_leaves(network.shapes).keys()
  assert table["stacks/0/attention/out/kernel"] == {
      "role": "hidden", "trained": True, "axes": ["layers", "heads", "head_dim", "embed"],
      "shape": [3, 4, 8, 32], "matrices": [3, 32, 32], "weight_decay": 0.1, "lr_multiplier": 1.0,
      "init_multiplier": 1.0, "projection": "own"}
  assert table["embedding/token"] == {
      "role": "embedding", "trained": True, "axes": ["vocab", "embed"], "shape": [64, 32],
      "matrices": [1, 64, 32],
      "weight_decay": 0.0, "lr_multiplier": 0.5,
      "init_multiplier": 1.0, "projection": "none"}
  assert table["stacks/0/mlp_norm/scale"]["matrices"] is None
  plain = make_config()
  described = describe(plain.optim, lay_out(plain.optim, network.roles, network.axes,
                                            network.shapes))
  assert {row["projection"] for row in described.values()} == {"none"}


@pytest.mark.parametrize("roles", ((), ("hidden",), ("norm", "embedding")))
def test_only_the_roles_that_decay_do(roles: tuple[str, ...], make_config: MakeConfig) -> None:
  """Without gradients a step is the decay, w <- w (1 - learning rate x weight decay)."""
  config = make_config(optim__weight_decay=50.0, optim__decay_roles=",".join(roles),
                       optim__schedule="constant", optim__learning_rate=1e-3)
  network = build_network(config)
  optimizer = build_optimizer(config.optim, optax.constant_schedule(1e-3), network.roles,
                              network.axes, network.shapes)
  params = jax.tree.map(lambda shape: jnp.ones(shape.shape), network.shapes)
  updates, _ = optimizer.update(optax.tree.zeros_like(params), optimizer.init(params), params)
  for name, update in named_leaves(updates).items():
    decays = named_leaves(network.roles)[name] in roles
    np.testing.assert_allclose(update, -0.05 if decays else 0, rtol=1e-6, err_msg=name)


END = "optim.final_fraction=0.1"


@pytest.mark.parametrize("texts, expected", (
    # Warmup 4 of 20: then sqrt(4 / step), step 4 on.
    (("optim.schedule=inverse_sqrt",), {4: 1, 5: (4 / 5) ** .5, 16: .5, 20: (4 / 20) ** .5}),
    # The last 8 steps, by steps or as a fraction, down to 0.1.
    (("optim.schedule=wsd", "optim.decay_steps=8", END), {11: 1, 12: 1, 16: .55, 20: .1}),
    (("optim.schedule=wsd", "optim.decay_fraction=0.4", END), {11: 1, 12: 1, 16: .55, 20: .1}),
    (("optim.schedule=wsd", "optim.decay_steps=8", "optim.decay_shape=one_minus_sqrt", END),
     {11: 1, 12: 1, 13: .1 + .9 * (1 - (1 / 8) ** .5), 14: .55, 20: .1}),
))
def test_schedules(texts: tuple[str, ...], expected: dict[int, float]) -> None:
  optim = overridden("train.steps=20", "optim.learning_rate=1", "optim.warmup_steps=4",
                     *texts).optim
  schedule = learning_rate_schedule(optim, 20)
  np.testing.assert_allclose([schedule(step) for step in (0, 2, *expected)],
                             [0, .5, *expected.values()], rtol=1e-6)
