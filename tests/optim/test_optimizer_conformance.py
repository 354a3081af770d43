"""The conformance table: every optimiser, one row, the same tests."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import of_jax.optim
from of_jax import config as config_lib
from of_jax.config import Config, OptimConfig
from of_jax.optim import build_optimizer
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train.sharding import make_mesh, state_shardings

# name -> config fields, and the learning rate that reaches the targets in STEPS steps. A row with
# projections has matrices that are read through a norm.
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
    "sgdp": ({}, 1e-3),
    "muon": ({}, 0.1),
    "sinkgd": ({}, 0.1),
    "swan": ({"swan_scale": 1}, 0.1),
    # One gradient of a matrix that is not square leaves a null space, whose basis is rounding; and
    # with a small eps the first step has only signs. So the sharded form could differ.
    "soap": ({"max_precond_dim": 8, "eps": 0.1, "precondition_frequency": 1}, 0.1),
    "rotated_adafactor": ({"max_precond_dim": 8, "eps": 0.1}, 0.1),
    "shampoo": ({"eps": 0.1, "precondition_power": -0.25}, 0.1),
}
# Optimiser -> the file of tests/optim that compares it with its formula in NumPy, or with numbers
# of its authors' code.
ORACLES = {
    "adafactor": "test_matrix_optimizers.py", "adamp": "test_radial.py",
    "adamw": "../fidelity/optim.py",
    "lion": "test_optimizer_conformance.py", "muon": "test_golden.py",
    "rotated_adafactor": "test_soap.py", "sgd": "test_optimizer_conformance.py",
    "sgdp": "test_radial.py", "shampoo": "test_shampoo.py",
    "sinkgd": "test_matrix_optimizers.py", "soap": "test_soap.py",
    "swan": "test_swan.py"}
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


def lion(g: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Chen et al. 2023, 2302.06675, Alg. 2, at b1 0.9 and b2 0.99: direction and new momentum."""
  return np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g


def sgd(g: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return g + 0.9 * m, g + 0.9 * m


def nesterov(g: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return g + 0.9 * (g + 0.9 * m), g + 0.9 * m


@pytest.mark.parametrize("formula, fields", (
    (lion, {}), (sgd, {}), (nesterov, {"nesterov": True})), ids=("lion", "sgd", "nesterov"))
def test_first_order_is_its_formula(formula: Callable[..., Any], fields: dict[str, Any]) -> None:
  """Five steps in float64, w <- w - lr (u + decay w); the norm's gain does not decay."""
  rng = np.random.default_rng(0)
  expected = {"matrix": rng.normal(size=(3, 4)), "gain": rng.normal(size=4)}
  params: Any = jax.tree.map(jnp.float32, expected)
  name = "lion" if formula is lion else "sgd"
  optimizer = build_optimizer(
      optim_config(name, weight_decay=0.1, **fields), lambda step: 0.02,
      {"matrix": "hidden", "gain": "norm"}, {"matrix": ("embed", "mlp"), "gain": ("channel",)},
      params)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  momentum = jax.tree.map(np.zeros_like, expected)
  for _ in range(5):
    grads = {name: rng.normal(size=w.shape) for name, w in expected.items()}
    updates, state = update(jax.tree.map(jnp.float32, grads), state, params)
    params = optax.apply_updates(params, updates)
    for leaf, decay in (("matrix", 0.1), ("gain", 0)):
      u, momentum[leaf] = formula(grads[leaf], momentum[leaf])
      expected[leaf] = expected[leaf] - 0.02 * (u + decay * expected[leaf])
      np.testing.assert_allclose(params[leaf], expected[leaf], rtol=1e-5, atol=1e-6, err_msg=leaf)


# Every role, and every kind of view, in few leaves: compiling takes the suite's time.
LEAVES = {
    "table": ("embedding", ("vocab", "embed"), (16, 8)),
    "query": ("hidden", ("layers", "embed", "heads", "head_dim"), (2, 8, 4, 2)),
    # The same numbers as `query`, whose heads are columns of one matrix.
    "twin": ("hidden", ("layers", "embed", "mlp"), (2, 8, 8)),
    "down": ("hidden", ("layers", "mlp", "embed"), (2, 16, 8)),
    "offset": ("bias", ("layers", "heads", "head_dim"), (2, 4, 2)),
    "norm": ("norm", ("layers", "channel"), (2, 8)),
    "gain": ("gain", ("layers",), (2,)),
    "head": ("unembedding", ("embed", "vocab"), (8, 16)),
}
NETWORK: Any = types.SimpleNamespace(
    roles={name: role for name, (role, _, _) in LEAVES.items()},
    axes={name: axes for name, (_, axes, _) in LEAVES.items()},
    shapes={name: jax.ShapeDtypeStruct(shape, jnp.float32)
            for name, (_, _, shape) in LEAVES.items()},
    trained=lambda tree: tree)


@pytest.mark.parametrize("row", TABLE)
def test_conforms(row: str, make_config: MakeConfig, tmp_path: Path) -> None:
  """On eight devices: dtypes, shardings, one executable, the single device's numbers, heads as
  columns, gradients of every size, and the state through a checkpoint.
  """
  config = make_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  mesh = make_mesh(config)
  optimizer = build_optimizer(optim_config(row, learning_rate=0.01, weight_decay=0.1),
                              lambda step: 0.01 / (1 + step), NETWORK.roles, NETWORK.axes,
                              NETWORK.shapes)
  shardings = state_shardings(mesh, NETWORK, optimizer)
  rng = np.random.default_rng(0)

  def draw() -> dict[str, Any]:
    leaves = {name: np.asarray(rng.normal(size=x.shape), np.float32)
              for name, x in NETWORK.shapes.items()}
    return leaves | {"twin": leaves["query"].reshape(2, 8, 8)}

  params, grads = draw(), [draw(), draw()]

  def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  with jax.set_mesh(mesh):
    split = jax.jit(step, out_shardings=(shardings["params"], shardings["opt_state"]))
    start = jax.device_put(params, shardings["params"])
    state = first = jax.device_put(optimizer.init(params), shardings["opt_state"])
    moved = start
    for g in grads:
      moved, state = split(jax.device_put(g, shardings["params"]), state, moved)
    # Counting traces (chex.assert_max_traces) would miss it: another sharding compiles unseen.
    assert split._cache_size() == 1, "a second executable was compiled"
  for before, after in zip(jax.tree.leaves(first), jax.tree.leaves(state)):
    assert before.dtype == after.dtype and before.sharding == after.sharding
  # Whatever has a matrix's shape lies where the matrix lies, a quarter on each device.
  matrices = {NETWORK.shapes[name].shape for name in ("table", "query", "down", "head")}
  for leaf in [*jax.tree.leaves(moved), *jax.tree.leaves(state)]:
    if leaf.shape in matrices:
      assert leaf.addressable_shards[0].data.size * 4 == leaf.size
  assert all(leaf.dtype == jnp.float32 for leaf in moved.values())

  alone = jax.jit(step)
  single, single_state = params, optimizer.init(params)
  for g in grads:
    single, single_state = alone(g, single_state, single)
  for name, leaf in single.items():
    np.testing.assert_allclose(moved[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
  np.testing.assert_allclose(single["twin"], single["query"].reshape(2, 8, 8), rtol=1e-5,
                             atol=1e-6)

  check_gradients_of_every_size(row, alone, params, optimizer.init(params))
  half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), NETWORK.shapes)
  updates, _ = jax.eval_shape(optimizer.update, half, jax.eval_shape(optimizer.init, half), half)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(updates))

  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save({"params": moved, "opt_state": state}, 2)
    checkpoints.wait()
    whole = {"params": moved, "opt_state": state, "step": jnp.int32(2)}
    restored = checkpoints.restore(jax.eval_shape(lambda: whole), shardings, 2)
  chex.assert_trees_all_equal(restored["opt_state"], state, strict=True)
  for ours, theirs in zip(jax.tree.leaves(restored["opt_state"]), jax.tree.leaves(state)):
    assert ours.sharding == theirs.sharding


def check_gradients_of_every_size(row: str, step: Callable[..., Any], params: dict[str, Any],
                                  state: Any) -> None:
  """Two steps each, since SOAP's first moves nothing. Zero gradients leave the decay of the roles
  that decay; from 1e-20 to 1e15 all is finite; NaN shows, in place.
  """
  noise = jax.tree.map(lambda x: np.asarray(
      np.random.default_rng(1).normal(size=x.shape), np.float32), params)

  def twice(grads: dict[str, Any]) -> tuple[Any, Any]:
    return step(grads, *reversed(step(grads, state, params)))

  still, _ = twice(jax.tree.map(np.zeros_like, params))
  projects = "projection_every" in TABLE[row][0]
  for name, leaf in still.items():
    role, start = LEAVES[name][0], params[name]
    ratio = np.linalg.norm(leaf) / np.linalg.norm(start)
    assert np.linalg.norm(leaf / ratio - start) < 1e-5 * np.linalg.norm(start), name
    assert 1 - 0.01 * 0.1 * 10 - 1e-6 < ratio < 1 + 1e-6, name
    if projects and role != "unembedding":
      continue
    # Rates 0.01 and 0.005 at decay 0.1; AdamP and SGDP take all of a weight that no gradient turns
    # for scale-invariant, and decay it by a tenth; SOAP's first step does not decay.
    decay = 0.1 * (0.01 * (row not in ("soap", "rotated_adafactor")) + 0.005)
    tenth = 0.1 if row in ("adamp", "sgdp") else 1
    if role not in ("embedding", "hidden", "unembedding"):
      decay = 0
    assert any(abs(ratio - 1 + share * decay) < 2e-6 for share in (1, tenth)), (name, ratio)
  for size in (1e-20, 1e15):
    for leaf in jax.tree.leaves(twice(jax.tree.map(lambda x: np.float32(size) * x, noise))):
      assert np.all(np.isfinite(leaf)), size
  _, warm = step(noise, state, params)
  moved, _ = step({**noise, "head": np.full_like(noise["head"], np.nan)}, warm, params)
  for name, leaf in moved.items():
    assert np.all(np.isnan(leaf) if name == "head" else np.isfinite(leaf)), name


# Arguments that shape arrays, which no traced number can.
STATIC = {"soap": "max_precond_dim", "rotated_adafactor": "max_precond_dim",
          "shampoo": "max_precond_dim"}


@pytest.mark.parametrize("name", ("adafactor", "adamp", "muon", "rotated_adafactor", "sgdp",
                                  "shampoo", "sinkgd", "soap", "swan"))
def test_hyperparameters_may_be_injected(name: str) -> None:
  """Traced, as in a jitted step: every number of the factory is part of the state."""
  params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
  make = getattr(of_jax.optim, name)
  optimizer = optax.inject_hyperparams(make, static_args=STATIC.get(name, ()))(learning_rate=0.1)
  state = optimizer.init(params)
  updates, after = jax.eval_shape(optimizer.update, params, state, params)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
  assert "learning_rate" in after.hyperparams
  if name == "sinkgd":
    # The number of iterations, changed in the state, is what acts.
    state.hyperparams["iterations"] = jnp.int32(0)
    none, _ = optimizer.update(params, state, params)
    np.testing.assert_allclose(none["w"], -0.1 * params["w"])


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

  projects = "projection_every" in TABLE[row][0]

  def sized(params: Any) -> Any:
    """As a norm would read what is projected: matrices at their targets' norm."""
    return jax.tree.map(lambda p, t: p * _norm(t) / _norm(p) if projects and p.ndim > 1 else p,
                        params, targets)

  def loss(params: Any) -> jax.Array:
    params = sized(params)
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
  for (path, end), target in zip(jax.tree_util.tree_leaves_with_path(sized(found)),
                                 jax.tree.leaves(targets)):
    if row == "swan" and end.ndim > 1:
      # Each output's gradient is centred, so that the mean of its weights stays.
      end, target = (x - jnp.mean(x, -2, keepdims=True) for x in (end, target))
    # Gains that are drawn back cannot reach a target.
    if end.ndim > 1 or not projects:
      np.testing.assert_allclose(end, target, atol=3e-2, err_msg=str(path))
  if projects:
    for end, first in zip(jax.tree.leaves(found), jax.tree.leaves(start)):
      if end.ndim > 1:
        np.testing.assert_allclose(_norm(end), _norm(first), rtol=1e-6)


def _norm(x: jax.Array) -> jax.Array:
  """Of each matrix, to divide it by."""
  return jnp.sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True))
