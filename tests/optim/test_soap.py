"""SOAP against the authors' code, its invariance, and rotated AdaFactor against NumPy."""

import functools
from collections.abc import Callable
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
    assert ours.count == theirs.count
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


def test_a_hundred_steps_of_square_matrices() -> None:
  """As near to the authors as they are to themselves when gradients are rounded otherwise."""
  optimizer, update = updater(False, 10_000)
  params = {name: authors.start(name) for name in authors.LONG}
  state = optimizer.init(params)
  for step in range(authors.LONG_STEPS):
    gradients = {name: authors.gradient(name, step, np.asarray(w)) for name, w in params.items()}
    updates, state = update(gradients, state, params)
    params = {name: np.asarray(w + updates[name]) for name, w in params.items()}
  for name, w in params.items():
    noise = float(GOLDEN[f"long_noise/{name}"])
    print(name, np.abs(w - GOLDEN[f"long/{name}"]).max() / np.abs(w).max(), noise)
    close(w, GOLDEN[f"long/{name}"], name, 1e-5)
