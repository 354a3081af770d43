"""Every norm against its formula in NumPy float64, and the properties that its paper states."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from of_jax import variants
from of_jax.config import Config, ModelConfig
from of_jax.errors import UserError
from of_jax.models.functional import build_network, named_leaves
from of_jax.models.norms import Norm, make_norm
from of_jax.models.norms.power import normalise_in_training
from of_jax.models.probe import Context
from tests.models import reference

MakeConfig = Callable[..., Config]
WIDTH, EPS = 32, 0.1
# A norm without an oracle fails in tests/test_completeness.py alone.
NAMES = tuple(name for name in variants.names("models/norms") if name in reference.NORMS)
GAIN, OFFSET = np.linspace(1, 2, WIDTH), np.linspace(-1, 1, WIDTH)
# Parameter -> its value in these tests, away from its start; any other is GAIN or 0.3.
VALUES = {"bias": OFFSET, "running_variance": np.linspace(0.2, 2, WIDTH),
          "running_square": np.linspace(0.5, 3, WIDTH)}
EVALUATION = Context(jnp.zeros((1, 1), jnp.int32))


def parameters_of(norm: Norm) -> dict[str, nnx.Param[jax.Array]]:
  return {name: value for name, value in vars(norm).items() if isinstance(value, nnx.Param)}


def norms(model: ModelConfig) -> dict[str, Norm]:
  """Every norm, its parameters away from their start."""
  made = {name: make_norm(name, nnx.Rngs(0), model) for name in NAMES}
  for norm in made.values():
    for name, parameter in parameters_of(norm).items():
      parameter[...] = VALUES.get(name, GAIN) if parameter.ndim else 0.3
  return made


@pytest.mark.parametrize("inside", (True, False))
def test_norms_are_their_formulas(inside: bool, make_config: MakeConfig) -> None:
  """In float32 to its rounding; in bfloat16 to the rounding of the result alone."""
  model = make_config(model__norm_eps=EPS,
                      model__norm_eps_placement="inside" if inside else "outside").model
  made = norms(model)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, WIDTH)) * 3 + 1, jnp.float32)

  @jax.jit
  def run(x: jax.Array) -> Any:
    at_zero = {name: jax.grad(lambda x, n=norm: jnp.sum(n(x, EVALUATION) ** 2))(0 * x)
               for name, norm in made.items()}
    return ({name: norm(x, EVALUATION) for name, norm in made.items()},
            {name: norm(x.astype(jnp.bfloat16), EVALUATION) for name, norm in made.items()},
            at_zero)

  single, half, at_zero = run(x)
  for name, norm in made.items():
    parameters = {of: np.float64(value[...]) for of, value in parameters_of(norm).items()}
    formula = functools.partial(reference.NORMS[name], model, p=parameters)
    expected = formula(np.float64(x))
    np.testing.assert_allclose(single[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
    assert single[name].dtype == jnp.float32 and half[name].dtype == jnp.bfloat16
    expected = formula(np.float64(x.astype(jnp.bfloat16)))
    np.testing.assert_allclose(np.float64(half[name]), expected, rtol=2 ** -8, atol=1e-5,
                               err_msg=name)
    assert np.all(np.isfinite(at_zero[name])), name


def test_properties(make_config: MakeConfig) -> None:
  """RMSNorms forget the scale, LayerNorm the mean too, DyT's output is bounded; any other norm
  forgets what its oracle does, and in training reads other tokens only where it says so."""
  model = make_config(model__norm_eps=0).model
  made = {name: make_norm(name, nnx.Rngs(0), model) for name in NAMES}
  x = np.random.default_rng(0).standard_normal((8, WIDTH)).astype(np.float32) + 0.5

  def forgets(function: Callable[[np.ndarray], np.ndarray], changed: np.ndarray) -> bool:
    return bool(np.abs(function(changed) - function(x)).max() < 1e-5)

  @jax.jit
  def run(x: jax.Array) -> Any:
    training = dataclasses.replace(EVALUATION, training=True)
    return [{name: norm(x, context) for name, norm in made.items()}
            for context in (EVALUATION, training)]

  plain, in_training = run(x)
  others_changed = run(np.concatenate([x[:1], x[1:, ::-1]]))[1]
  for name, norm in made.items():
    for changed, known in ((1000 * x, ("rms", "srms", "ss", "crms", "layer", "power")),
                           (x + 3, ("layer",))):
      does, should = (forgets(function, changed) for function in (
          lambda x: run(x)[0][name], lambda x: reference.NORMS[name](model, x, {})))
      assert does == should and (does or name not in known), name
    same = np.array_equal(others_changed[name][0], in_training[name][0])
    assert same == norm.causal_in_training, name
  np.testing.assert_allclose(np.mean(plain["layer"], -1), 0, atol=1e-6)
  np.testing.assert_allclose(np.std(plain["layer"], -1), 1, rtol=1e-5)
  for name in ("rms", "srms", "ss"):
    np.testing.assert_allclose(np.mean(plain[name] ** 2, -1), 1, rtol=1e-5, err_msg=name)
  bounded = norms(make_config().model)["dyt"](1e30 * x, EVALUATION)
  np.testing.assert_allclose(np.abs(bounded - OFFSET), np.broadcast_to(GAIN, x.shape), rtol=1e-6)
  assert not jax.tree.leaves([nnx.state(made[n], nnx.Param) for n in ("srms", "crms", "none")])


@pytest.mark.parametrize("field", ("qk_norm", "mlp_norm"))
def test_norms_over_other_axes_are_those_whose_files_say_so(field: str, make_config: MakeConfig
                                                            ) -> None:
  """Not CRMSNorm, which is for a stream that leaves a neuron out; each reads its fields."""
  for name in ("batch", "dyt", "l1", "layer", "none", "power", "rms", "srms", "ss", "unified"):
    assert getattr(make_config(**{f"model__{field}": name}).model, field) == name
  with pytest.raises(UserError, match="not one of auto, batch, dyt, l1.*; did you mean rms"):
    make_config(**{f"model__{field}": "crms"})
  model = make_config(**{f"model__{field}": "dyt", "model__dyt_alpha": 0.3}).model
  assert model.dyt_alpha == 0.3
  model = make_config(**{f"model__{field}": "power", "model__power_decay": 0.5}).model
  assert model.power_decay == 0.5
  with pytest.raises(UserError, match="is part of model.norm=dyt and does nothing in rms"):
    make_config(**{f"model__{field}": "dyt", "model__dyt_alpha_attention": 0.3})


def test_running_statistics_are_renewed_once_a_step_wherever_they_stand(
    make_config: MakeConfig) -> None:
  """Over queries, keys and hidden units too: their gradient is their new value."""
  network = build_network(make_config(model__norm="power", model__qk_norm="power",
                                      model__mlp_norm="power", model__depth=2))
  params = jax.jit(network.init)(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(1, 64, (2, 16))

  @jax.jit
  def renewed(params: Any) -> Any:
    return jax.grad(lambda params: jnp.sum(
        network.apply(params, tokens, training=True)[0][0] ** 2))(params)

  steps = {name: leaf for name, leaf in named_leaves(renewed(params)).items()
           if name.endswith("running_steps")}
  assert {name.split("/")[-2] for name in steps} == {
      "attention_norm", "query_norm", "key_norm", "mlp_norm", "norm"}
  for name, leaf in steps.items():
    np.testing.assert_array_equal(leaf, 1, err_msg=name)


def power_norm_step(x: np.ndarray, gradient: np.ndarray, running: dict[str, np.ndarray],
                    decay: float, warmup: int, inside: bool) -> Any:
  """z, dL/dx and the new running values of one training step, token by token in float64."""
  step = running["steps"] + 1
  square = np.mean(x ** 2, (0, 1))

  def divide(x: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    return x / (np.sqrt(mean_square + EPS) if inside else np.sqrt(mean_square) + EPS)

  z = divide(x, square if step <= warmup else running["square"])
  corrected = gradient - (1 - decay) * running["gradient"] * z
  averaged = running["square"]
  if step < warmup:
    averaged = averaged * (step - 1) / step + square / step
  return z, divide(corrected, square), {
      "square": decay * averaged + (1 - decay) * square,
      "gradient": running["gradient"] + np.mean(corrected * z, (0, 1)), "steps": step}


@pytest.mark.parametrize("inside", (True, False))
def test_power_norm_is_the_released_codes_formula(inside: bool, make_config: MakeConfig) -> None:
  """Forward, backward and running values over six steps, the warmup ending at step 3."""
  settings = make_norm("power", nnx.Rngs(0), make_config(
      model__norm="power", model__norm_eps=EPS, model__power_decay=0.8, model__power_warmup_steps=3,
      model__norm_eps_placement="inside" if inside else "outside").model).settings

  @jax.jit
  def step(x: jax.Array, gradient: jax.Array, running: Any) -> Any:
    z, pull = jax.vjp(lambda x, r: normalise_in_training(settings, x, r), x, running)
    return z, *pull(gradient)

  rng = np.random.default_rng(0)
  running = {"square": np.ones(WIDTH), "gradient": np.zeros(WIDTH), "steps": np.zeros(())}
  ours = jax.tree.map(jnp.float32, running)
  for _ in range(6):
    x, gradient = rng.standard_normal((2, 4, 5, WIDTH)).astype(np.float32)
    x *= np.linspace(0.5, 4, WIDTH, dtype=np.float32)
    z, x_gradient, ours = step(x, gradient, ours)
    expected = power_norm_step(np.float64(x), np.float64(gradient), running, 0.8, 3, inside)
    running = expected[2]
    for got, want in zip(jax.tree.leaves((z, x_gradient, ours)), jax.tree.leaves(expected)):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  assert ours["steps"] == 6 and np.abs(running["gradient"]).max() > 0.1


def test_power_norm_uses_other_rows_in_training_alone(make_config: MakeConfig) -> None:
  """Causal, and frozen, in evaluation: a sequence's logits are those that it has alone."""
  network = build_network(make_config(model__norm="power", model__depth=2))
  params = jax.jit(network.init)(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(1, 64, (2, 16))
  other = np.stack([tokens[0], tokens[1][::-1]])

  @jax.jit
  def run(tokens: jax.Array) -> Any:
    return [network.apply(params, tokens, training=training)[0][0] for training in (False, True)]

  (frozen, training), (other_frozen, other_training) = run(tokens), run(other)
  np.testing.assert_array_equal(frozen, other_frozen)
  assert np.abs(training - other_training).max() > 1e-4


def test_dyt_starts_higher_where_attention_reads(make_config: MakeConfig) -> None:
  network = build_network(make_config(model__norm="dyt", model__dyt_alpha=0.2, model__depth=2,
                                      model__dyt_alpha_attention=0.8, model__final_norm=True))
  alphas = {name: np.asarray(leaf) for name, leaf in
            named_leaves(jax.jit(network.init)(jax.random.key(0))).items() if "alpha" in name}
  np.testing.assert_allclose(alphas.pop("stacks/0/attention_norm/alpha"), [0.8, 0.8])
  assert len(alphas) == 2 and all(np.allclose(alpha, 0.2) for alpha in alphas.values())
