"""NaP: norms at init, the function that stays, gains and offsets, and every k-th step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from of_jax import config as config_lib
from of_jax.config import Config
from of_jax.models.functional import build_network, named_leaves
from of_jax.optim import build_optimizer, nap

TOKENS = np.random.default_rng(0).integers(1, 64, (2, 16))


def resolved(**fields: Any) -> Config:
  settings = {"model.width": 32, "model.depth": 2, "model.heads": 4, "model.embedding_scale": 8,
              "data.corpus": "tokens:none", "data.vocab_size": 64, "train.sequence_length": 16,
              "model.init_std": 0.2, "optim.clip_norm": "none", "optim.projection_every": 1,
              **{path.replace("__", "."): value for path, value in fields.items()}}
  return config_lib.apply_overrides(Config(), [(k, str(v)) for k, v in settings.items()])


def matrix_norms(leaf: Any) -> np.ndarray:
  """Frobenius norms of the layers of a stacked leaf, in float64."""
  flat = np.asarray(leaf, float).reshape(len(leaf), -1)
  return np.sqrt(np.sum(flat ** 2, 1))


def test_keeps_every_projected_norm() -> None:
  """After steps of any size, each layer's matrix has its own norm at init, to 1e-6."""
  config = resolved()
  network = build_network(config)
  optimizer = build_optimizer(config.optim, lambda step: 0.1, network.roles, network.axes,
                              network.shapes)
  params = start = jax.jit(network.init)(jax.random.key(0))
  state, rng = optimizer.init(params), np.random.default_rng(0)
  update = jax.jit(optimizer.update)
  for _ in range(5):
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    inner, earlier = state[0].inner, state
    updates, state = update(grads, state, params)
    before, params = params, optax.apply_updates(params, updates)
    for name, leaf in named_leaves(params).items():
      if named_leaves(network.roles)[name] == "hidden":
        first = named_leaves(start)[name]
        np.testing.assert_allclose(matrix_norms(leaf), matrix_norms(first), rtol=1e-6)
        assert len(set(matrix_norms(first))) == 2 and np.any(leaf != named_leaves(before)[name])
  plain = build_optimizer(resolved(optim__projection_every="none").optim, lambda step: 0.1,
                          network.roles, network.axes, network.shapes)
  # What is not projected moves as without.
  # Both outside of jit, where no product is fused: the same bits.
  updates, _ = plain.update(grads, (inner,), before)
  ours, _ = optimizer.update(grads, earlier, before)
  for name, leaf in named_leaves(updates).items():
    if named_leaves(network.roles)[name] != "hidden":
      np.testing.assert_array_equal(leaf, named_leaves(ours)[name])


def pushed(config: Config, factors: dict[str, Any]) -> tuple[Any, Any, Any]:
  """Logits with weights that a step of no gradient took away from init by `factors`, before and
  after the projection; and the optimiser's state.
  """
  network = build_network(config)
  optimizer = build_optimizer(config.optim, lambda step: 0.0, network.roles, network.axes,
                              network.shapes)
  params = jax.jit(network.init)(jax.random.key(0))
  state = optimizer.init(params)
  roles = named_leaves(network.roles)

  def move(path: Any, leaf: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    found = [f for part, f in factors.items() if part in name and roles[name] != "norm"]
    return leaf * jnp.asarray(found[0], jnp.float32).reshape(-1, *[1] * (leaf.ndim - 1)) if (
        found) else leaf

  moved = jax.tree_util.tree_map_with_path(move, params)
  updates, state = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), state, moved)
  apply = jax.jit(network.apply)
  return (apply(moved, TOKENS)[0], apply(optax.apply_updates(moved, updates), TOKENS)[0], state[0])


def test_leaves_the_function_of_what_a_norm_reads() -> None:
  """Queries and keys under QK-norm: projected back from 0.3 to 3 times their norm, no logit moves.

  The norms' eps is the whole difference; without QK-norm the same projection changes the logits.
  """
  factors = {"query": [3.0, 0.5], "key": [0.3, 2.0]}
  before, after, state = pushed(resolved(model__qk_norm="rms", model__norm_eps=1e-12), factors)
  np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
  np.testing.assert_allclose(named_leaves(state.factors)["stacks/0/attention/query/kernel"],
                             [1 / 3, 2], rtol=1e-6)
  before, after, _ = pushed(resolved(model__norm_eps=1e-12), factors)
  assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()


def test_writers_may_share_one_factor() -> None:
  """The residual stream's writers, by one factor: the function stays under a norm of the stream;
  each by its own: it changes, and by what is in the state.
  """
  factors = {"embedding/": 2.0, "out": [3.0, 0.5], "down": [0.3, 2.0]}
  settings = {"model__norm": "srms", "model__final_norm": True, "model__norm_eps": 1e-12}
  before, after, state = pushed(resolved(optim__projection_writers="common", **settings), factors)
  np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
  shared = {name: factor for name, factor in named_leaves(state.factors).items()
            if "embedding" in name or "out/" in name or "down" in name}
  assert len(shared) == 4 and len({float(f) for v in shared.values() for f in v}) == 1
  before, after, state = pushed(resolved(**settings), factors)
  assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()
  np.testing.assert_allclose(named_leaves(state.factors)["stacks/0/mlp/down/kernel"],
                             [1 / 0.3, 0.5], rtol=1e-6)


@pytest.mark.parametrize("gains", ("keep", "joint", "decay"))
def test_gains_and_offsets(gains: Any) -> None:
  """The paper's options: nothing; (s, m) to norm sqrt(width); drawn to 1 and 0 by 1 - alpha."""
  params = {"norm": {"scale": jnp.ones((2, 4)), "bias": jnp.zeros((2, 4))},
            "other": {"scale": jnp.full((1, 4), 3.0)}, "w": jnp.eye(3)}
  kinds = {"norm": {"scale": "gain", "bias": "gain"}, "other": {"scale": "gain"}, "w": "own"}
  views = jax.tree.map(lambda _: None, params)
  from of_jax.optim.matrices import view
  views = {"norm": {"scale": view(("layers", "channel"), (2, 4)),
                    "bias": view(("layers", "channel"), (2, 4))},
           "other": {"scale": view(("layers", "channel"), (1, 4))},
           "w": view(("embed", "mlp"), (3, 3))}
  optimizer = nap(optax.sgd(1.0), gains=gains, gain_decay=0.9, kinds=kinds, views=views)
  grads = {"norm": {"scale": jnp.array([[-1.0] * 4, [0.0] * 4]), "bias": jnp.array([
      [-1.0] * 4, [-3.0] * 4])}, "other": {"scale": jnp.full((1, 4), -1.0)}, "w": -jnp.eye(3)}
  updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
  moved = optax.apply_updates(params, updates)
  np.testing.assert_allclose(moved["w"], np.eye(3), rtol=1e-6)
  # One step of plain SGD: layer 0 to s = 2, m = 1; layer 1 to s = 1, m = 3; the other gain to 4.
  expected = {
      "keep": ([2, 1], [1, 3], 4),
      # 4 (2^2 + 1^2) and 4 (1^2 + 3^2) back to 4; 4 x 4^2 back to 4 x 3^2.
      "joint": ([2 / 5 ** 0.5, 1 / 10 ** 0.5], [1 / 5 ** 0.5, 3 / 10 ** 0.5], 3),
      "decay": ([0.9 * 2 + 0.1, 1], [0.9, 2.7], 0.9 * 4 + 0.1 * 3)}[gains]
  for found, value in zip((moved["norm"]["scale"], moved["norm"]["bias"]), expected[:2]):
    np.testing.assert_allclose(found, np.repeat(np.array(value)[:, None], 4, 1), rtol=1e-6)
  np.testing.assert_allclose(moved["other"]["scale"], expected[2], rtol=1e-6)


def test_every_kth_step_and_zero_matrices() -> None:
  params = {"w": jnp.eye(3), "zero": jnp.zeros((2, 2))}
  optimizer = nap(optax.sgd(1.0), every=3)
  state, norms = optimizer.init(params), []
  for _ in range(6):
    updates, state = optimizer.update(jax.tree.map(lambda x: -jnp.ones_like(x), params), state,
                                      params)
    params = optax.apply_updates(params, updates)
    norms.append(float(jnp.linalg.norm(params["w"])) / 3 ** 0.5)
  assert [abs(norm - 1) < 1e-6 for norm in norms] == [False, False, True, False, False, True]
  np.testing.assert_array_equal(params["zero"], 6)
