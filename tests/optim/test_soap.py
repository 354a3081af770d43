"""SOAP against the authors' code, its invariance, and rotated AdaFactor against NumPy."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from of_jax.optim.optimizers.rotated_adafactor import rotated_adafactor
from of_jax.optim.optimizers.soap import scale_by_soap, soap
from of_jax.optim.preconditioners import Stacks, merged_sizes
from of_jax.optim.rotated import RotatedState, StepThenDecayState
from tests.golden import soap as authors

GOLDEN = np.load(Path(authors.__file__).with_suffix(".npz"))
PLAIN = [name for name in authors.SHAPES if name not in authors.MERGED]
Tree = dict[str, Any]


@functools.cache
def updater(merge_dims: bool, max_precond_dim: int) -> tuple[Any, Any]:
  """(optimiser, its jitted update) with the settings of the golden numbers."""
  settings = dict(authors.SETTINGS)
  rate, (b1, b2) = settings.pop("lr"), settings.pop("betas")
  optimizer = soap(rate, b1, b2, **{**settings, "max_precond_dim": max_precond_dim},
                   merge_dims=merge_dims)
  return optimizer, jax.jit(optimizer.update)


def golden(key: str, names: list[str]) -> Tree:
  return {name: GOLDEN[f"{key.partition(':')[0]}/{name}{key.partition(':')[2]}"]
          for name in names}


def authors_state(step: int, names: list[str]) -> tuple[Tree, Any]:
  """(parameters, our state) after the authors' `step`."""
  def squares(title: str) -> Tree:
    found = {}
    for name in names:
      prefix = f"after/{step}/{name}/{title}"
      found[name] = Stacks({key.removeprefix(prefix): GOLDEN[key][None]
                            for key in GOLDEN.files if key.startswith(prefix)})
    return found

  count = jnp.int32(step + 1)
  state = RotatedState(count, golden(f"after/{step}:/mu", names),
                       golden(f"after/{step}:/nu", names), squares("factor"), squares("basis"))
  return golden(f"after/{step}:/w", names), (state, StepThenDecayState(count))


def close(ours: Any, theirs: Any, what: str, tolerance: float = 1e-5) -> None:
  """To the largest entry."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  np.testing.assert_allclose(ours, theirs, rtol=0, err_msg=what,
                             atol=tolerance * max(np.abs(theirs).max(), 1e-30))


@pytest.mark.parametrize("names", (PLAIN, list(authors.MERGED)), ids=("plain", "merged"))
def test_a_step_from_the_authors_state(names: list[str]) -> None:
  """Parameters, moments, factors and bases after one step from theirs, at six steps."""
  optimizer, update = updater(names != PLAIN, 12)
  for step in authors.STEPS:
    params, state = ({name: authors.start(name) for name in names}, None) if step == 0 else \
        authors_state(step - 1, names)
    state = state or optimizer.init(params)
    updates, (ours, _) = update(golden(f"gradient/{step}:", names), state, params)
    theirs_w, (theirs, _) = authors_state(step, names)
    assert ours.calls == theirs.calls
    for name in names:
      what = f"step {step} {name}"
      if step == 0:
        np.testing.assert_array_equal(updates[name], 0)
      close(updates[name], theirs_w[name] - params[name], what)
      close(ours.nu[name], theirs.nu[name], what)
      assert ours.bases[name].sides.keys() == theirs.bases[name].sides.keys()
      mu = np.asarray(ours.mu[name])
      for side, basis in theirs.bases[name].sides.items():
        close(ours.factors[name].sides[side], theirs.factors[name].sides[side], what)
        mine = np.array(ours.bases[name].sides[side][0])
        signs = np.sign(np.sum(mine * basis[0], 0))
        # One gradient leaves a null space, in which any basis is as good.
        defined = slice(mu.size // len(mine)) if step == 0 else slice(None)
        close((mine * signs)[:, defined], basis[0][:, defined], what)
        np.testing.assert_allclose(mine.T @ mine, np.eye(len(mine)), atol=1e-5)
        shape = merged_sizes(mu.shape, 12) if names != PLAIN else mu.shape
        turned = np.moveaxis(mu.reshape(shape), int(side), -1) * signs
        mu = np.moveaxis(turned, -1, int(side)).reshape(mu.shape)
      close(mu, theirs.mu[name], what)


def gradients(seed: int, shape: tuple[int, ...], steps: int) -> list[np.ndarray]:
  return list(np.random.default_rng(seed).standard_normal((steps, *shape)))


def directions(optimizer: optax.GradientTransformation, given: list[np.ndarray],
               update: Any = None) -> list[np.ndarray]:
  """Every update; `update` is the optimiser's, jitted, where several calls share it."""
  state = optimizer.init(given[0])
  update = update or jax.jit(optimizer.update)
  found = []
  for g in given:
    moved, state = update(g, state)
    found.append(np.asarray(moved))
  return found


def test_is_invariant_to_a_change_of_basis_and_adam_is_not() -> None:
  """Gradients U G V^T for fixed orthogonal U and V move the parameter by U (...) V^T."""
  with jax.enable_x64(True):
    u, v = (np.linalg.qr(g)[0] for g in gradients(0, (6, 6), 2))
    given = gradients(1, (6, 6), 8)
    for optimizer, invariant in ((scale_by_soap(precondition_frequency=3), True),
                                 (optax.scale_by_adam(), False)):
      update = jax.jit(optimizer.update)
      moved = directions(optimizer, given, update)
      turned = directions(optimizer, [u @ g @ v.T for g in given], update)
      assert moved[-1].dtype == np.float64
      errors = [np.abs(b - u @ a @ v.T).max() for a, b in zip(moved, turned)]
      assert (max(errors) < 1e-9) == invariant, errors
      assert max(errors) < 1e-9 or min(errors) > 0.1


def rotated_adafactor_in_numpy(given: list[np.ndarray], w: np.ndarray, rate: float, b1: float,
                               b2: float, beta: float, eps: float, decay: float, every: int
                               ) -> np.ndarray:
  """The parameter after one call a gradient, with the basis by a QR step, in float64."""
  rows, columns = w.shape
  left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
  q_left, q_right = np.eye(rows), np.eye(columns)
  m, r, c = np.zeros_like(w), np.zeros(rows), np.zeros(columns)
  for t, g in enumerate(given):
    if t > 0:
      turned = q_left.T @ g @ q_right
      m = b1 * m + (1 - b1) * turned
      r = b2 * r + (1 - b2) * np.mean(turned ** 2, 1)
      c = b2 * c + (1 - b2) * np.mean(turned ** 2, 0)
      step = m / (np.sqrt(np.outer(r, c) / np.mean(r)) + eps)
      w = w - rate * np.sqrt(1 - b2 ** t) / (1 - b1 ** t) * (q_left @ step @ q_right.T)
      w = w - rate * decay * w
    left = beta * left + (1 - beta) * g @ g.T
    right = beta * right + (1 - beta) * g.T @ g
    if t == 0:
      q_left, q_right = (np.linalg.eigh(x)[1][:, ::-1] for x in (left, right))
    elif t % every == 0:
      m = q_left @ m @ q_right.T
      orders = [np.argsort(-np.diag(q.T @ x @ q)) for q, x in ((q_left, left), (q_right, right))]
      r, c = r[orders[0]], c[orders[1]]
      q_left, q_right = (np.linalg.qr(x @ q[:, order])[0] for q, x, order in (
          (q_left, left, orders[0]), (q_right, right, orders[1])))
      m = q_left.T @ m @ q_right
  return w


def test_rotated_adafactor_against_numpy() -> None:
  """On a stack of two square matrices, over two refreshes."""
  given = gradients(2, (2, 5, 5), 8)
  w = gradients(3, (2, 5, 5), 1)[0]
  optimizer = rotated_adafactor(0.1, 0.9, 0.97, 0.8, 0.05, 0.1, 3)
  with jax.enable_x64(True):
    update = jax.jit(optimizer.update)
    params, state = jnp.asarray(w), optimizer.init(jnp.asarray(w))
    for g in given:
      updates, state = update(g, state, params)
      params = params + updates
  for i in range(2):
    expected = rotated_adafactor_in_numpy([g[i] for g in given], w[i], 0.1, 0.9, 0.97, 0.8, 0.05,
                                          0.1, 3)
    np.testing.assert_allclose(params[i], expected, rtol=1e-9)


def test_stacked_layers_are_matrices_of_their_own() -> None:
  """A stack moves as its matrices do apart, and a vector as Adam moves it a call later."""
  given = gradients(4, (3, 4, 6), 5)
  optimizer = scale_by_soap(precondition_frequency=2)
  stacked = directions(optimizer, given)
  update = jax.jit(optimizer.update)
  for i in range(3):
    for whole, alone in zip(stacked, directions(optimizer, [g[i] for g in given], update)):
      np.testing.assert_allclose(whole[i], alone, atol=1e-5)
  vectors = [g[0, 0] for g in given]
  b2 = 0.95
  adam = directions(optax.scale_by_adam(0.95, b2, eps=0), vectors[1:])
  ours = directions(scale_by_soap(eps=0), vectors)
  np.testing.assert_array_equal(ours[0], 0)
  np.testing.assert_allclose(ours[1:], adam, rtol=1e-5)


def test_merged_sizes() -> None:
  """By hand from the authors' loop."""
  assert merged_sizes((3, 4, 2, 5), 12) == (12, 10)
  assert merged_sizes((6, 2, 3, 5), 12) == (12, 3, 5)
  assert merged_sizes((50, 4), 12) == (50, 4)
  assert merged_sizes((2, 50, 4), 12) == (2, 50, 4)
  assert merged_sizes((1, 8), 12) == (8,) and merged_sizes((1, 1), 12) == (1,)
