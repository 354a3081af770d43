"""The conformance table: every optimiser, one row, the same tests."""

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
from of_jax.config import Config, OptimConfig
from of_jax.models.functional import Network, build_network, named_leaves
from of_jax.optim import build_optimizer
from of_jax.train.checkpoint import Checkpoints
from of_jax.train.sharding import make_mesh, state_shardings

# name -> config fields, and the learning rate that reaches the targets in STEPS steps. A row with
# projections reaches their direction.
TABLE: dict[str, tuple[dict[str, Any], float]] = {
    "adamw": ({}, 0.1),
    "adamw nap": ({"projection_every": 2, "projection_gains": "decay"}, 0.1),
    "sgd": ({}, 1e-3),
    "sgd nesterov nap joint": (
        {"nesterov": True, "projection_every": 1, "projection_gains": "joint",
         "projection_writers": "common"}, 1e-3),
    "lion": ({}, 3e-2),
    "adafactor": ({}, 0.1),
    "adamp": ({}, 0.1),
    "adamp nesterov": ({"nesterov": True}, 0.1),
    "sgdp": ({}, 1e-3),
    "muon": ({}, 0.1),
    "muon rms": ({"muon_scale": "rms", "nesterov": False}, 0.1),
    "sinkgd": ({}, 0.1),
    # One gradient leaves null spaces that are not square, whose basis is rounding; and with a small
    # eps the first step has only signs. Such rounding is no failure of the sharded form.
    "soap": ({"max_precond_dim": 32, "eps": 0.1}, 0.1),
    "rotated_adafactor": ({"max_precond_dim": 32, "eps": 0.1}, 0.1),
    "shampoo": ({"eps": 0.1}, 0.1),
    "shampoo original": ({"eps": 0.1, "precondition_power": -0.25, "shampoo_beta": 1.0, "b1": 0.0,
                          "grafting": "none", "precondition_frequency": 1}, 1.0),
    "sinkgd spectrum": ({"norms": "rows,spectrum,matrix", "norm_iterations": 2}, 0.1),
}
STEPS = 4000
MakeConfig = Callable[..., Config]


def optim_config(row: str, **fields: Any) -> OptimConfig:
  """The row's resolved fields; no decay and no clipping unless `fields` say so."""
  settings = {"name": row.split()[0], "weight_decay": 0, "clip_norm": None, "warmup_steps": 0,
              "schedule": "constant", **TABLE[row][0], **fields}
  return config_lib.apply_overrides(Config(), [
      (f"optim.{name}", "none" if value is None else str(value))
      for name, value in settings.items()]).optim


def on_plain(row: str, params: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
  """The row's optimiser for hidden matrices [layers, in, out] or [in, out], and vectors."""
  names = {1: ("channel",), 2: ("embed", "mlp"), 3: ("layers", "embed", "mlp")}
  roles = jax.tree.map(lambda x: "hidden" if x.ndim > 1 else "norm", params)
  return build_optimizer(optim_config(row), schedule, roles,
                         jax.tree.map(lambda x: names[x.ndim], params), params)


def test_table_has_every_optimizer() -> None:
  assert {row.split()[0] for row in TABLE} == set(variants.names("optim/optimizers"))


@pytest.fixture(scope="module")
def network() -> Network:
  """Every role; width 32, two layers."""
  texts = {"model.width": 32, "model.depth": 2, "model.heads": 4, "model.norm": "layer",
           "model.beta": 0.5, "model.beta_trainable": True, "model.qk_bias": True,
           "model.final_norm": True, "data.corpus": "tokens:none", "data.vocab_size": 64,
           "train.sequence_length": 32}
  return build_network(config_lib.apply_overrides(
      Config(), [(path, str(value)) for path, value in texts.items()]))


@pytest.mark.parametrize("row", TABLE)
def test_conforms(row: str, network: Network, make_config: MakeConfig, tmp_path: Path) -> None:
  """On eight devices: dtypes, shardings, one executable, the single device's numbers, gradients of
  every size, and the state through a checkpoint.
  """
  config = make_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  mesh = make_mesh(config)
  optimizer = build_optimizer(optim_config(row, learning_rate=0.01, weight_decay=0.1),
                              lambda step: 0.01 / (1 + step), network.roles, network.axes,
                              network.shapes)
  shardings = state_shardings(mesh, network, optimizer)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), np.float32), network.shapes)
  grads = [jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), np.float32), params)
           for _ in range(2)]

  def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  with jax.set_mesh(mesh):
    split = jax.jit(step, out_shardings=(shardings["params"], shardings["opt_state"]))
    start = jax.device_put(params, shardings["params"])
    state = first = jax.jit(optimizer.init, out_shardings=shardings["opt_state"])(start)
    moved = start
    for g in grads:
      moved, state = split(jax.device_put(g, shardings["params"]), state, moved)
    assert split._cache_size() == 1, "a second executable was compiled"
  # Whatever has a parameter's shape lies where the parameter lies.
  by_shape = {(leaf.shape, leaf.dtype): leaf.sharding for leaf in jax.tree.leaves(moved)}
  for before, after in zip(jax.tree.leaves(first), jax.tree.leaves(state)):
    assert before.dtype == after.dtype and before.sharding == after.sharding
  for name, leaf in named_leaves(moved).items():
    assert leaf.dtype == jnp.float32 and leaf.sharding == named_leaves(start)[name].sharding
    if name.endswith("kernel"):
      assert not leaf.sharding.is_fully_replicated, name
  big = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 2 and min(leaf.shape[1:]) > 1]
  assert all(not leaf.sharding.is_fully_replicated for leaf in big)
  assert by_shape

  alone = jax.jit(step)
  single, single_state = params, optimizer.init(params)
  for g in grads:
    single, single_state = alone(g, single_state, single)
  for name, leaf in named_leaves(single).items():
    np.testing.assert_allclose(named_leaves(moved)[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)

  check_gradients_of_every_size(row, optimizer, alone, params)

  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save({"params": moved, "opt_state": state}, 2)
    checkpoints.wait()
    whole = {"params": moved, "opt_state": state, "step": jnp.int32(2)}
    restored = checkpoints.restore(jax.eval_shape(lambda: whole), shardings, 2)
  assert jax.tree.structure(restored["opt_state"]) == jax.tree.structure(state)
  for ours, theirs in zip(jax.tree.leaves(restored["opt_state"]), jax.tree.leaves(state)):
    np.testing.assert_array_equal(ours, theirs)
    assert ours.sharding == theirs.sharding


def check_gradients_of_every_size(row: str, optimizer: optax.GradientTransformation,
                                  step: Callable[..., Any], params: Any) -> None:
  """Zero gradients leave decay alone; sizes from 1e-20 to 1e15 are finite; NaN shows, in place."""
  state = optimizer.init(params)
  rng = np.random.default_rng(1)
  noise = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), np.float32), params)
  # Projections bring the decay back; on this first step all but the gains are due or not moved.
  still, _ = step(jax.tree.map(np.zeros_like, params), state, params)
  for name, leaf in named_leaves(still).items():
    start = named_leaves(params)[name]
    ratio = np.linalg.norm(leaf) / np.linalg.norm(start)
    assert np.linalg.norm(leaf / ratio - start) < 1e-5 * np.linalg.norm(start), name
    assert 1 - 0.01 * 0.1 * 10 - 1e-6 < ratio < 1 + 1e-6, name
  for size in (1e-20, 1e15):
    moved, _ = step(jax.tree.map(lambda x: np.float32(size) * x, noise), state, params)
    for name, leaf in named_leaves(moved).items():
      assert np.all(np.isfinite(leaf)), (name, size)
  # SOAP's first step moves nothing, whatever it is given.
  _, state = step(noise, state, params)
  bad = {**noise, "unembedding": {"kernel": np.full_like(noise["unembedding"]["kernel"], np.nan)}}
  moved, _ = step(bad, state, params)
  for name, leaf in named_leaves(moved).items():
    assert np.all(np.isnan(leaf) if name == "unembedding/kernel" else np.isfinite(leaf)), name


@pytest.mark.parametrize("row", TABLE)
def test_accumulates_and_converges(row: str) -> None:
  """Four micro-batches are the batch of their mean; and four targets, as one program: a parabola,
  Rosenbrock's valley, a matrix, and a vector with a stack of matrices.
  """
  rng = np.random.default_rng(0)
  targets = {"parabola": np.array([1., -1., 1.]), "rosenbrock": np.array([1., 1.]),
             "matrix": np.array([[3., -2.], [1., 4.]]),
             "mixed": {"vector": np.array([1., -1., 2.]), "stack": rng.normal(size=(2, 2, 3))}}
  targets = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), targets)
  start = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), targets)
  start["rosenbrock"] = jnp.zeros(2)

  def loss(params: Any) -> jax.Array:
    a, b = params["rosenbrock"]
    valley = (1 - a) ** 2 + 100 * (b - a ** 2) ** 2
    rest = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), {**params, "rosenbrock": 0.0},
                        {**targets, "rosenbrock": 0.0})
    return valley + sum(jax.tree.leaves(rest))

  schedule = optax.cosine_decay_schedule(TABLE[row][1], STEPS)
  optimizer = on_plain(row, start, schedule)
  many = optax.MultiSteps(optimizer, 4)

  @jax.jit
  def both(params: Any) -> Any:
    def descend(carry: Any, _: None) -> tuple[Any, None]:
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    def accumulate(carry: Any, grads: Any) -> tuple[Any, None]:
      params, state = carry
      updates, state = many.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    found, _ = jax.lax.scan(descend, (params, optimizer.init(params)), None, STEPS)
    parts = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(8, *p.shape)), jnp.float32), params)
    small, _ = jax.lax.scan(accumulate, (params, many.init(params)), parts)
    state, large = optimizer.init(params), params
    for half in (slice(0, 4), slice(4, 8)):
      updates, state = optimizer.update(
          jax.tree.map(lambda x: jnp.mean(x[half], 0), parts), state, large)
      large = optax.apply_updates(large, updates)
    return found[0], small[0], large

  found, small, large = both(start)
  for a, b, before in zip(*map(jax.tree.leaves, (small, large, start))):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.any(a != before)
  projects = "projection_every" in TABLE[row][0]
  for (path, end), target, first in zip(jax.tree_util.tree_leaves_with_path(found),
                                        jax.tree.leaves(targets), jax.tree.leaves(start)):
    if projects and end.ndim > 1:
      axes = (-2, -1)
      norm = jnp.sqrt(jnp.sum(first ** 2, axes, keepdims=True))
      np.testing.assert_allclose(jnp.sqrt(jnp.sum(end ** 2, axes, keepdims=True)), norm, rtol=1e-6)
      target = target * norm / jnp.sqrt(jnp.sum(target ** 2, axes, keepdims=True))
    elif projects:
      continue  # Gains are drawn back: they cannot reach a target.
    np.testing.assert_allclose(end, target, atol=3e-2, err_msg=str(path))
