"""Moments in bfloat16: what rounding at random keeps, and what the state then takes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.optim.narrow import narrow, round_at_random
from of_jax.train.sharding import make_mesh
from of_jax.train.trainer import make_trainer


def test_rounding_keeps_the_mean() -> None:
  """To one of both neighbours, in the proportion in which x lies between them."""
  x = jnp.asarray([1 + 1 / 1024, -3e-20 * (1 + 1 / 300), 1.5, 0, np.inf, -np.inf, np.nan])
  keys = jax.random.split(jax.random.key(0), 4096)
  rounded = np.asarray(jax.vmap(round_at_random, (None, 0))(x, keys), np.float64)
  exact = np.asarray(x, np.float64)
  for i in (0, 1):
    assert len(np.unique(rounded[:, i])) == 2
    gap = np.ptp(rounded[:, i])
    # The deviation of a mean of 4,096 draws between two values is at most gap / 2 / 64.
    assert abs(rounded[:, i].mean() - exact[i]) < 4 * gap / 128 and gap < 2 ** -6 * abs(exact[i])
  np.testing.assert_array_equal(rounded[:, 2:], np.broadcast_to(exact[2:], (4096, 5)))


def test_a_second_moment_does_not_stand_still() -> None:
  """Of gradients of 1 it is 1 - b2^t. Rounded to the nearest it would stay near a third of 1."""
  optimizer = narrow(optax.scale_by_adam(b1=0.9, b2=0.999))
  gradient = {"w": jnp.ones(512)}

  def step(state: Any, _: None) -> tuple[Any, None]:
    return optimizer.update(gradient, state)[1], None

  state = jax.jit(lambda: jax.lax.scan(step, optimizer.init(gradient), None, 3000)[0])()
  nu = state.inner.nu["w"]
  assert nu.dtype == jnp.bfloat16 and state.inner.mu["w"].dtype == jnp.bfloat16
  np.testing.assert_allclose(np.mean(np.asarray(nu, np.float64)), 1 - 0.999 ** 3000, rtol=0.01)


def test_a_trainers_state(make_config: Callable[..., Config]) -> None:
  """Every moment is halved and lies as its parameter does; nothing else of the state changes."""
  fields = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "model__depth": 2,
            "optim__projection_every": 1, "optim__projection_gains": "decay"}
  states = {}
  for dtype in ("float32", "bfloat16"):
    config = make_config(**fields, optim__moment_dtype=dtype)
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
      trainer = make_trainer(config, mesh)
      shapes = jax.eval_shape(trainer.init, jax.random.key(0))["opt_state"]
    states[dtype] = (jax.tree.leaves(shapes), jax.tree.leaves(trainer.shardings["opt_state"]))
  wide, narrowed = states["float32"], states["bfloat16"]
  steps = [i for i, leaf in enumerate(narrowed[0]) if leaf.dtype == jnp.int32]
  assert len(narrowed[0]) == len(wide[0]) + 1
  extra = next(i for i in steps if wide[0][i].dtype != jnp.int32 or i == steps[-1])
  pairs = list(zip(*(leaves[:extra] + leaves[extra + 1:] for leaves in narrowed), *wide))
  halved = [ours for ours, _, theirs, _ in pairs if ours.dtype != theirs.dtype]
  assert all(ours.shape == theirs.shape and spec == expected
             for ours, spec, theirs, expected in pairs)
  assert len(halved) == 2 * len(jax.tree.leaves(trainer.network.shapes))
  assert {leaf.dtype for leaf in halved} == {jnp.dtype(jnp.bfloat16)}


def test_without_moments_it_is_refused(make_config: Callable[..., Config]) -> None:
  with pytest.raises(UserError, match="optim.moment_dtype.*optim.name=sgd keeps no moments"):
    make_config(optim__name="sgd", optim__momentum=0, optim__moment_dtype="bfloat16")
