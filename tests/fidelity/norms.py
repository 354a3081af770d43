"""Unified Normalization and EvoNorm against their authors' code."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from of_jax import config as config_lib
from of_jax import variants
from of_jax.config import Config
from of_jax.models.evonorm import EvoNormMLP
from of_jax.models.norms import make_norm
from of_jax.models.norms.unified import Settings, scaled_in_training
from of_jax.models.probe import Context
from tests.fidelity import Comparison
from tests.golden import evonorm, unified_norm

# Names of their arguments -> of our settings.
ARGUMENTS = {"warmup_iters": "warmup_steps", "outlier_filtration": "skips", "momentum": "decay"}


@functools.cache
def golden(script: Any) -> dict[str, np.ndarray]:
  """The numbers that a script of tests/golden left beside it."""
  with np.load(Path(script.__file__).with_suffix(".npz")) as file:
    return dict(file)


def relative(ours: Any, theirs: np.ndarray) -> float:
  """The largest difference over the largest of theirs; 0 where both are 0."""
  difference = np.abs(np.asarray(ours) - theirs).max()
  return float(difference / max(np.abs(theirs).max(), 1e-30)) if difference else 0.0


def unified_error(name: str) -> float:
  """Compares output, gradients and state after some of the steps, and the output in evaluation."""
  theirs, width = golden(unified_norm), unified_norm.WIDTH
  arguments, done, _ = unified_norm.SETTINGS[name]
  settings = Settings(**{"eps": 1e-5, "eps_inside": True, "decay": 0.9, "window": 4,
                         "warmup_steps": 4000, "skips": False,
                         **{ARGUMENTS[key]: value for key, value in arguments.items()}})

  @jax.jit
  def step(x: jax.Array, gradient: jax.Array, scale: jax.Array, running: Any) -> Any:
    y, pull = jax.vjp(lambda *a: scaled_in_training(settings, *a), x, scale, running)
    return y, *pull(gradient)

  scale, bias = unified_norm.parameters()
  running: Any = jax.tree.map(jnp.float32, {
      "square": np.ones(width), "gradient": np.zeros(width), "squares": np.zeros((4, width)),
      "gradients": np.zeros((4, width)), "steps": np.float32(done)})
  errors = []
  for number in range(1, unified_norm.STEPS + 1):
    x, gradient = unified_norm.batch(name, done + number)
    y, x_gradient, scale_gradient, running = step(x, gradient, scale, running)
    if number in unified_norm.KEPT:
      ours = {"y": y + bias, "x_gradient": x_gradient, "scale_gradient": scale_gradient, **running}
      errors += [relative(ours[what], theirs[f"{name}/{number}/{what}"])
                 for what in ours if what != "steps"]
  norm = make_norm("unified", nnx.Rngs(0), config_lib.apply_overrides(Config(), [
      ("model.norm", "unified"), ("model.norm_eps", "1e-5")]).model, width)
  norm.scale[...], norm.bias[...], norm.running_square[...] = scale, bias, running["square"]
  evaluated = norm(unified_norm.batch(name, 0)[0], context(False))
  return max(*errors, relative(evaluated, theirs[f"{name}/evaluated"]))


def context(training: bool) -> Context:
  """Makes the context of a module: where in the model it stands."""
  return Context(jnp.zeros((1, 1), jnp.int32), training=training)


def evonorm_error(form: str) -> float:
  """Compares output and gradients; of B0 the running variance and evaluation too."""
  theirs, given = golden(evonorm), evonorm.inputs()
  model = config_lib.apply_overrides(Config(), [
      ("model.mlp", f"evonorm_{form}"), ("model.mlp_width", str(evonorm.UNITS))]).model
  graph, state = nnx.split(variants.load_class("models/mlps", model.mlp, EvoNormMLP)(
      nnx.Rngs(0), model))
  for ours, name in (("scale", "gamma"), ("bias", "beta"), ("slope", "v")):
    state[ours].set_value(jnp.asarray(given[name]))

  def run(state: Any, x: jax.Array, training: bool) -> jax.Array:
    return nnx.merge(graph, state).activate(x, context(training))

  y, pull = jax.vjp(lambda state, x: run(state, x, True), state, given["x"])
  of_state, of_x = pull(jnp.asarray(given["gradient"]))
  found = {"y": y, "x_gradient": of_x, "gamma_gradient": of_state["scale"][...],
           "beta_gradient": of_state["bias"][...], "v_gradient": of_state["slope"][...]}
  if form == "b0":
    found["variance"] = of_state["running_variance"][...]
    state["running_variance"].set_value(found["variance"])
    found["evaluated"] = run(state, given["x"], False)
  assert {f"{form}/{name}" for name in found} == {k for k in theirs if k.startswith(form)}
  return max(relative(value, theirs[f"{form}/{name}"]) for name, value in found.items())


COMPARISONS = [
    *(Comparison(
        f"Unified Normalization, setting {name}", "hikvision-research/Unified-Normalization",
        "0ce9bf2", "2026-11-28", "largest relative difference of output, gradients and state over "
        f"{unified_norm.STEPS} steps", functools.partial(unified_error, name), 1e-5)
      for name in unified_norm.SETTINGS),
    *(Comparison(
        f"EvoNorm-{form.upper()}", "tensorflow/tpu", "7dc921f", "2026-11-28",
        "largest relative difference of output, gradients and running variance",
        functools.partial(evonorm_error, form), 1e-5) for form in evonorm.FORMS)]
