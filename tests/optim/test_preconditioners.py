"""Decompositions in groups: each does its own matrix, none waits for ever, devices share them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from of_jax.config import Config
from of_jax.models import partition
from of_jax.models.functional import build_network
from of_jax.optim import build_optimizer, preconditioners
from of_jax.optim.matrices import view
from of_jax.optim.preconditioners import planner
from of_jax.train.sharding import make_mesh, state_shardings

MakeConfig = Callable[..., Config]
ROOT = Path(__file__).parents[2]
NAMES = ("soap", "rotated_adafactor", "shampoo")


def covariances(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
  x = rng.standard_normal((count, side, 2 * side))
  return x @ x.swapaxes(1, 2)


def test_groups_against_numpy() -> None:
  """Every matrix of every group gets its own eigenvectors, power step, order and root."""
  rng = np.random.default_rng(0)
  sizes = [{"0": (2, 3), "1": (2, 5)}, {"1": (3, 3)}, {}, {"0": (1, 5)}]
  factors = [{side: covariances(rng, *size) for side, size in part.items()} for part in sizes]
  start = [{side: np.linalg.qr(rng.standard_normal((count, n, n)))[0]
            for side, (count, n) in part.items()} for part in sizes]
  exponents = [-0.25, -0.5, -0.5, -1.0]

  @jax.jit
  def all_three(factors: Any, start: Any) -> Any:
    return (preconditioners.eigenbases(factors), preconditioners.power_step(factors, start),
            preconditioners.matrix_powers(factors, exponents, 0.1))

  with jax.enable_x64(True):
    bases, (turned, orders), roots = jax.device_get(all_three(factors, start))
  roots, eigenvalues = roots
  for k, part in enumerate(factors):
    assert bases[k].keys() == turned[k].keys() == roots[k].keys() == part.keys()
    for side, stack in part.items():
      for i, matrix in enumerate(stack):
        values, vectors = np.linalg.eigh(matrix)
        overlap = np.abs(bases[k][side][i].T @ vectors[:, ::-1])
        np.testing.assert_allclose(overlap, np.eye(len(matrix)), atol=1e-9)
        q = start[k][side][i]
        order = np.argsort(-np.diag(q.T @ matrix @ q))
        np.testing.assert_array_equal(orders[k][side][i], order)
        expected = np.linalg.qr(matrix @ q[:, order])[0]
        np.testing.assert_allclose(np.abs(turned[k][side][i].T @ expected), np.eye(len(matrix)),
                                   atol=1e-9)
        np.testing.assert_allclose(eigenvalues[k][side][i], values, rtol=1e-9)
        root = vectors @ np.diag((values + 0.1) ** exponents[k]) @ vectors.T
        np.testing.assert_allclose(roots[k][side][i], root, rtol=1e-9, atol=1e-9)


def test_rounding_below_zero_has_a_root() -> None:
  """A singular factor whose eigenvalues come out slightly negative counts as singular."""
  vector = np.ones((1, 4, 1), np.float32) * 1e-3
  factor = [{"0": jnp.asarray(vector @ vector.swapaxes(1, 2)) - 1e-9 * jnp.eye(4)}]
  root = preconditioners.matrix_powers(factor, [-0.5], 1e-6)[0][0]["0"][0]
  assert np.all(np.isfinite(root))
  np.testing.assert_allclose(np.linalg.eigvalsh(root).max(), 1e3, rtol=1e-3)


def test_which_sides_have_a_factor() -> None:
  """Matrices' sides up to the limit, but not the vocabulary; heads are one side; no vector."""
  axes: dict[str, tuple[str, ...]] = {
      "query": ("layers", "embed", "heads", "head_dim"), "token": ("vocab", "embed"),
      "up": ("layers", "embed", "mlp"), "gain": ("layers", "channel")}
  shapes = {"query": (3, 8, 2, 4), "token": (6, 8), "up": (3, 8, 9), "gain": (3, 8)}
  views = {name: view(axes[name], shape) for name, shape in shapes.items()}
  plan = planner(views, preconditioners.vocabulary_axes(axes), 8)
  arrays = {name: jnp.zeros(shape) for name, shape in shapes.items()}
  found = {path[0].key: plan(path, x).factored
           for path, x in jax.tree_util.tree_leaves_with_path(arrays)}
  assert found == {"query": (0, 1), "token": (1,), "up": (0,), "gain": ()}
  with pytest.raises(ValueError, match="views already say what the sides are"):
    planner(views, None, 8, merge_dims=True)


def test_many_decompositions_end() -> None:
  """Of nine sizes in one program, and sixteen of one. Batched, they stop for ever in one run of
  five, or at once: so thirty runs, and no batch in what is compiled.
  """
  code = r"""
import jax, numpy as np, re
from of_jax.optim import preconditioners
for sides, runs in ((range(96, 168, 8), 30), ([128] * 16, 1)):
  factors = [{"0": np.tile(np.diag(np.arange(1, side + 1, dtype=np.float32)), (4, 1, 1))}
             for side in sides]
  step = jax.jit(preconditioners.power_step).lower(factors, factors).compile()
  found = re.findall(r"= \(f32(\[[\d,]+\])[^\n]*lapack_sgeqrf", step.as_text())
  assert set(found) == {f"[{side},{side}]" for side in sides}, found
  for _ in range(runs):
    bases, _ = jax.block_until_ready(step(factors, factors))
  for factor, basis in zip(factors, bases):
    # The square of a diagonal matrix, by falling entries.
    np.testing.assert_allclose(np.abs(basis["0"]), np.eye(len(factor["0"][0]))[None, :, ::-1]
                               .repeat(4, 0), rtol=0, atol=1e-6)
"""
  environment = {name: value for name, value in os.environ.items()
                 if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=240,
                          capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


def test_devices_share_a_decomposition() -> None:
  """Of 11 matrices of one size on eight devices, each factors two, the last ones being filler."""
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  factors = [{"0": covariances(np.random.default_rng(i), n, 8).astype(np.float32)}
             for i, n in enumerate((4, 4, 3))]
  with jax.set_mesh(mesh):
    split, start = jax.device_put((factors, [{"0": np.tile(np.eye(8, dtype=np.float32), (
        len(part["0"]), 1, 1))} for part in factors]), NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(preconditioners.power_step).lower(split, start).compile()
    bases, _ = step(split, start)
  # The loop over matrices ends after two on every device.
  assert re.findall(r"known_trip_count\":{\"n\":\"(\d+)\"}", step.as_text()) == ["2"]
  for part, basis in zip(factors, bases):
    for matrix, q in zip(part["0"], np.asarray(basis["0"])):
      expected = np.linalg.qr(matrix[:, np.argsort(-np.diag(matrix))])[0]
      np.testing.assert_allclose(np.abs(q.T @ expected), np.eye(8), atol=1e-4)


def test_specs_of_state() -> None:
  """A mesh axis splits the first axis that it divides; one that divides none copies."""
  mesh = {"data": 2, "fsdp": 2, "tensor": 4}
  square = ("matrices", "side", "side")
  for shape, expected in (
      ((8, 6, 6), (("fsdp", "tensor"), None, None)), ((2, 8, 8), ("fsdp", "tensor", None)),
      ((3, 8, 8), (None, ("fsdp", "tensor"), None)), ((3, 6, 6), (None, "fsdp", None)),
      ((3, 5, 5), (None, None, None))):
    spec = tuple(partition.state_spec(square, shape, mesh))
    assert [part if isinstance(part, tuple) else (part,) for part in spec] == [
        part if isinstance(part, tuple) else (part,) for part in expected], shape
  with pytest.raises(KeyError):
    partition.state_spec(("channel",), (4,), mesh)


@pytest.mark.parametrize("name", NAMES)
def test_every_factor_is_split(name: str, make_config: MakeConfig) -> None:
  """On eight devices, of which data copies by two: a quarter each of every factor and basis."""
  config = make_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, optim__name=name)
  network = build_network(config)
  optimizer = build_optimizer(config.optim, lambda _: 0.1, network.roles, network.axes,
                              network.shapes)
  shapes = jax.eval_shape(optimizer.init, network.shapes)
  shardings = state_shardings(make_mesh(config), network, optimizer)["opt_state"]
  pairs = list(zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings)))
  squares = [(leaf, sharding) for (path, leaf), sharding in pairs
             if any(getattr(key, "name", "") == "sides" for key in path) and leaf.ndim == 3]
  # Two factors and two of what is made of them for six matrices a layer, two for the positions,
  # one for each table of the vocabulary.
  assert len(squares) == 2 * (6 * 2 + 2 + 1 + 1)
  for leaf, sharding in squares:
    assert np.prod(sharding.shard_shape(leaf.shape)) * 4 == np.prod(leaf.shape), leaf
