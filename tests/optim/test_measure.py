"""Optimiser telemetry against NumPy float64, and in a run's step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from of_jax import config as config_lib
from of_jax.config import Config
from of_jax.optim import build_optimizer, lay_out
from of_jax.optim.measure import METRICS, measure_step

ROLES = {"stacks": {"0": {"a": "hidden", "b": "hidden", "g": "gain"}, "1": {"a": "hidden"}},
         "table": "embedding", "end": "hidden"}
AXES = {"stacks": {"0": {"a": ("layers", "embed", "mlp"), "b": ("layers", "mlp", "embed"),
                         "g": ("layers",)}, "1": {"a": ("layers", "embed", "mlp")}},
        "table": ("vocab", "embed"), "end": ("embed", "mlp")}
SHAPES = {"stacks": {"0": {"a": (2, 4, 6), "b": (2, 6, 4), "g": (2,)}, "1": {"a": (1, 4, 6)}},
          "table": (7, 4), "end": (4, 6)}
# The entries of each value: per role, a list of (leaf, layer) groups in the order of the values.
GROUPS = {
    "hidden": [[("stacks/0/a", 0), ("stacks/0/b", 0)], [("stacks/0/a", 1), ("stacks/0/b", 1)],
               [("stacks/1/a", 0)], [("end", None)]],
    "gain": [[("stacks/0/g", 0)], [("stacks/0/g", 1)]],
    "embedding": [[("table", None)]],
}


def test_every_metric_is_its_formula() -> None:
  """Two stacks, several leaves a role, a leaf outside; sizes from 1e-15 to 1e5, a zero update."""
  rng = np.random.default_rng(0)
  is_shape = {"is_leaf": lambda node: isinstance(node, tuple)}
  draw = lambda size: jax.tree.map(  # noqa: E731
      lambda shape: np.asarray(size * rng.normal(size=shape), np.float32), SHAPES, **is_shape)
  params, gradients = draw(1.0), draw(1.0)
  optim = config_lib.apply_overrides(Config(), [
      ("optim.lr_multipliers", "embedding=0.5"), ("optim.projection_every", "1")]).optim
  layout = lay_out(optim, ROLES, AXES, jax.tree.map(jnp.asarray, params))
  optimizer = build_optimizer(optim, lambda step: 0.1, ROLES, AXES, params)
  updates, state = optimizer.update(gradients, optimizer.init(params), params)
  sizes = {"stacks": {"0": {"a": 1e-15, "b": 1e-15, "g": 0.0}, "1": {"a": 1e5}}, "table": 1.0,
           "end": 1.0}
  updates = jax.tree.map(lambda u, size: u * np.float32(size), updates, sizes)
  gradients = jax.tree.map(lambda g, size: g * np.float32(size), gradients, sizes)
  found = jax.jit(lambda *trees: measure_step(layout, *trees))(
      params, gradients, updates, state, 0.1)
  assert found.keys() == GROUPS.keys()
  nu, factors = state[1].inner[0][0].nu, state[1].factors

  def leaf(tree: Any, name: str, layer: int | None) -> np.ndarray:
    for key in name.split("/"):
      tree = tree[key]
    return np.asarray(tree, float)[... if layer is None else layer]

  for role, groups in GROUPS.items():
    expected: dict[str, list[float]] = {name: [] for name in METRICS}
    for group in groups:
      w, g, u, v = (np.concatenate([leaf(tree, *part).ravel() for part in group])
                    for tree in (params, gradients, updates, nu))
      rate = 0.1 * (0.5 if role == "embedding" else 1.0)
      with np.errstate(invalid="ignore"):
        expected["gradient_kurtosis"].append(np.mean(g ** 4) / np.mean(g ** 2) ** 2)
        expected["update_kurtosis"].append(np.mean(u ** 4) / np.mean(u ** 2) ** 2)
        expected["radial_share"].append(sum(
            np.sum(leaf(params, *part) * leaf(updates, *part)) ** 2
            / np.sum(leaf(params, *part) ** 2) for part in group) / np.sum(u ** 2))
      expected["gradient_rms"].append(np.sqrt(np.mean(g ** 2)))
      expected["update_rms_ratio"].append(np.sqrt(np.mean(u ** 2)) / np.sqrt(np.mean(w ** 2)))
      expected["nu_tail"].append(v.max() / v.mean())
      expected["effective_lr"].append(rate / np.linalg.norm(w))
      expected["effective_lr_squared"].append(rate / np.sum(w ** 2))
      if role == "hidden":
        expected["projection_factor"].append(np.mean([
            leaf(factors, name, layer or 0) for name, layer in group]))
    # There are no preconditioners, and stack 1 has no matrix that writes to the stream.
    del expected["preconditioner_condition"], expected["projection_factor_writers"]
    if role != "hidden":
      del expected["projection_factor"]
    assert found[role].keys() == expected.keys()
    for name, values in expected.items():
      np.testing.assert_allclose(found[role][name], values, rtol=1e-5, err_msg=f"{role} {name}")


def test_what_float32_loses_is_null() -> None:
  """Layers of one role: weights whose squares are lost, gradients and updates from 1e-15 to 1e-37.

  Sizes of gradients and updates are told by their largest, and so are right as long as entries are.
  """
  rng = np.random.default_rng(0)
  sizes = np.array([1, 1e-15, 1e-19, 1e-25, 1e-37])
  w, g, u = ((rng.normal(size=(5, 4, 6)) * size[:, None, None]).astype(np.float32)
             for size in (np.array([1, 1e-15, 1e-17, 1e-25, 0]), sizes, sizes))
  params, gradients, updates, roles, axes = (
      {"stacks": {"0": {"w": leaf}}} for leaf in (w, g, u, "hidden", ("layers", "embed", "mlp")))
  optim = config_lib.apply_overrides(Config(), [("optim.name", "adamw")]).optim
  state = build_optimizer(optim, lambda step: 0.1, roles, axes, params).init(params)
  state = jax.tree.map(lambda leaf: jnp.square(g) if leaf.shape else leaf, state)
  found = jax.jit(lambda *trees: measure_step(lay_out(optim, roles, axes, params), *trees))(
      params, gradients, updates, state, 0.1)["hidden"]
  w, g, u = (x.astype(float).reshape(5, -1) for x in (w, g, u))
  with np.errstate(all="ignore"):
    expected = {
        "gradient_kurtosis": np.mean(g ** 4, 1) / np.mean(g ** 2, 1) ** 2,
        "update_kurtosis": np.mean(u ** 4, 1) / np.mean(u ** 2, 1) ** 2,
        "gradient_rms": np.sqrt(np.mean(g ** 2, 1)),
        "update_rms_ratio": np.sqrt(np.mean(u ** 2, 1) / np.mean(w ** 2, 1)),
        "nu_tail": (g ** 2).max(1) / np.mean(g ** 2, 1),
        "effective_lr": 0.1 / np.linalg.norm(w, axis=1),
        "radial_share": np.sum(w * u, 1) ** 2 / np.sum(w ** 2, 1) / np.sum(u ** 2, 1)}
  known = {"gradient_kurtosis": 4, "update_kurtosis": 4, "gradient_rms": 4}
  for name, values in expected.items():
    right = known.get(name, 2)
    np.testing.assert_allclose(found[name][:right], values[:right], rtol=1e-5, err_msg=name)
    if name != "radial_share":  # A weight of 0 has none.
      assert np.all(np.isnan(found[name][right:])), name
  assert np.all(np.isnan(found["radial_share"][2:4])) and found["radial_share"][4] == 0


def test_projection_of_what_writes_to_the_stream() -> None:
  """Of a layer's two matrices, grown twofold and threefold, the one whose columns are neurons."""
  params = {"stacks": {"0": {"a": jnp.ones((2, 4, 6)), "b": jnp.ones((2, 6, 4))}}}
  roles, axes = ({"stacks": {"0": {name: tree["stacks"]["0"][name] for name in "ab"}}}
                 for tree in (ROLES, AXES))
  optim = config_lib.apply_overrides(Config(), [
      ("optim.name", "sgd"), ("optim.momentum", "0"), ("optim.weight_decay", "0"),
      ("optim.clip_norm", "none"), ("optim.projection_every", "1")]).optim
  optimizer = build_optimizer(optim, lambda step: 1.0, roles, axes, params)
  gradients = {"stacks": {"0": {"a": -params["stacks"]["0"]["a"],
                                "b": -2 * params["stacks"]["0"]["b"]}}}
  updates, state = optimizer.update(gradients, optimizer.init(params), params)
  found = measure_step(lay_out(optim, roles, axes, params), params, gradients, updates, state,
                       jnp.float32(1))["hidden"]
  np.testing.assert_allclose(found["projection_factor_writers"], [1 / 3] * 2, rtol=1e-6)
  np.testing.assert_allclose(found["projection_factor"], [(1 / 2 + 1 / 3) / 2] * 2, rtol=1e-6)


def test_condition_of_the_preconditioner() -> None:
  """Of the factors of a known gradient: SOAP's in the basis that the first call takes, Shampoo's
  as of that refresh; the worst of a layer's matrices and sides, no more than float32 can tell.
  """
  shapes = {"stacks": {"0": {"a": (2, 4, 4), "b": (2, 4, 4), "g": (2, 5)}}, "table": (9, 4)}
  roles = {"stacks": {"0": {"a": "hidden", "b": "hidden", "g": "norm"}}, "table": "embedding"}
  axes = {"stacks": {"0": {"a": ("layers", "embed", "mlp"), "b": ("layers", "mlp", "embed"),
                           "g": ("layers", "channel")}}, "table": ("vocab", "embed")}
  rng = np.random.default_rng(0)
  gradients = jax.tree.map(lambda shape: np.asarray(rng.normal(size=shape), np.float32), shapes,
                           is_leaf=lambda node: isinstance(node, tuple))
  gradients["stacks"]["0"]["b"][1, 0] = gradients["stacks"]["0"]["b"][1, 1]  # Of rank 3.
  params = jax.tree.map(np.ones_like, gradients)
  for name in ("soap", "rotated_adafactor", "shampoo"):
    optim = config_lib.apply_overrides(Config(), [("optim.name", name)]).optim
    optimizer = build_optimizer(optim, lambda step: 0.1, roles, axes, params)
    updates, state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    found = jax.jit(lambda *trees: measure_step(lay_out(optim, roles, axes, params), *trees))(
        params, gradients, updates, state, 0.1)
    ours = {role: metrics["preconditioner_condition"] for role, metrics in found.items()
            if "preconditioner_condition" in metrics}
    assert ours.keys() == {"hidden", "embedding"}
    first = gradients["stacks"]["0"]
    worst = max(np.linalg.cond(np.float64(first[part][0])) ** 2 for part in "ab")
    np.testing.assert_allclose(ours["hidden"], [worst, 2 ** 23 / 4], rtol=1e-3)
    np.testing.assert_allclose(
        ours["embedding"], [np.linalg.cond(np.float64(gradients["table"])) ** 2], rtol=1e-4)


def test_what_an_optimizer_lacks_is_left_out() -> None:
  optim = config_lib.apply_overrides(Config(), [("optim.name", "muon")]).optim
  params = jax.tree.map(jnp.ones, SHAPES, is_leaf=lambda node: isinstance(node, tuple))
  layout = lay_out(optim, ROLES, AXES, params)
  optimizer = build_optimizer(optim, lambda step: 0.1, ROLES, AXES, params)
  updates, state = optimizer.update(params, optimizer.init(params), params)
  found = measure_step(layout, params, params, updates, state, jnp.float32(0.1))
  assert "nu_tail" not in found["hidden"] and "nu_tail" in found["embedding"]
  assert all("projection_factor" not in metrics for metrics in found.values())
  assert optax.tree.sum(jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), found)) == 0
