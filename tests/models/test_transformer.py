"""What single parts compute, against the papers' formulas in NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from of_jax.config import Config
from of_jax.models.attention import Attention, rotate
from of_jax.models.functional import build_network
from of_jax.models.probe import Context
from of_jax.models.rope_scaling import frequency_scale, llama3_scale
from of_jax.models.softmaxes.plain import PlainSoftmax
from of_jax.models.written_out import attend

MakeConfig = Callable[..., Config]


def stream_statistics(config: Config, batch: int = 32, seed: int = 0) -> Any:
  """Mean square at every site of freshly drawn parameters on random tokens."""
  network = build_network(config)
  tokens = np.random.default_rng(seed).integers(
      0, config.data.vocab_size, (batch, config.train.sequence_length))

  def observe(site: str, x: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
    return {"mean_square": jnp.mean(jnp.square(x))}

  def run(key: jax.Array) -> Any:
    return network.apply(network.init(key), tokens, observe=observe)[1]

  return jax.jit(run)(jax.random.key(seed))


@pytest.mark.parametrize("positions, expected", (("rotary", 1.0), ("learned", 1.25)))
def test_scale_50_gives_the_first_block_a_mean_square_near_1(
    positions: str, expected: float, make_config: MakeConfig) -> None:
  """50 x 0.02 = 1 from the token, and (50 x 0.01)^2 = 0.25 more from a learned position."""
  config = make_config(model__embedding_scale=50, model__positions=positions, model__width=256,
                       data__vocab_size=512, data__corpus="text:unused")
  first = stream_statistics(config)["resid_pre"]["mean_square"][0]
  np.testing.assert_allclose(first, expected, rtol=0.05)


def test_the_scale_multiplies_the_position_too(make_config: MakeConfig) -> None:
  at_1 = stream_statistics(make_config(model__embedding_scale=1))
  at_8 = stream_statistics(make_config(model__embedding_scale=8))
  ratio = at_8["resid_pre"]["mean_square"][0] / at_1["resid_pre"]["mean_square"][0]
  np.testing.assert_allclose(ratio, 64, rtol=1e-5)


def test_op_block_is_the_papers_formula(make_config: MakeConfig) -> None:
  """h = x + beta MHA(x), y = h + beta MLP(alpha h), recomputed from its own sites."""
  config = make_config(model__block="op", model__beta_attention=0.3, model__beta_mlp=0.2,
                       model__mlp_input_scale=1.7)
  network = build_network(config)
  seen: dict[str, jax.Array] = {}

  def observe(site: str, x: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
    return {"x": x}

  params = network.init(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, 64, (2, 16))
  _, seen = network.apply(params, tokens, observe=observe)
  seen = {site: kept["x"] for site, kept in seen.items()}
  stack = params["stacks"]["0"]
  np.testing.assert_array_equal(seen["attn_in"], seen["resid_pre"])
  np.testing.assert_allclose(seen["mlp_in"], 1.7 * seen["resid_mid"], rtol=1e-6)
  np.testing.assert_allclose(seen["resid_mid"], seen["resid_pre"] + seen["attn_out"], atol=1e-6)
  np.testing.assert_allclose(
      seen["resid_pre"][1], seen["resid_mid"][0] + seen["mlp_out"][0], atol=1e-6)
  np.testing.assert_allclose(
      seen["mlp_hidden"][0], np.maximum(seen["mlp_in"][0] @ stack["mlp"]["up"]["kernel"][0], 0),
      atol=1e-6)
  np.testing.assert_allclose(
      seen["mlp_out"][0], 0.2 * seen["mlp_hidden"][0] @ stack["mlp"]["down"]["kernel"][0],
      atol=1e-6)
  # QK-norm is the default: every head of every query has mean square 1, whatever the stream.
  heads = seen["attn_q"].reshape(3, 2, 16, 4, 8)
  np.testing.assert_allclose(np.mean(heads ** 2, -1), 1, rtol=0.05)
  assert "attention_norm" not in stack and "final_norm" not in params
  q, k, v = (jnp.einsum("btd,dhk->bthk", seen["attn_in"][0], stack["attention"][n]["kernel"][0])
             for n in ("query", "key", "value"))
  q, k = (x / jnp.sqrt(jnp.mean(x ** 2, -1, keepdims=True) + 1e-6) for x in (q, k))
  logits = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(8)
  weights = jax.nn.softmax(jnp.where(np.tril(np.ones((16, 16), bool)), logits, -jnp.inf), -1)
  out = jnp.einsum("bhts,bshk,hkd->btd", weights, v, stack["attention"]["out"]["kernel"][0])
  np.testing.assert_allclose(seen["attn_out"][0], 0.3 * out, atol=1e-6)


def test_default_beta_follows_the_depth(make_config: MakeConfig) -> None:
  for depth in (6, 12):
    model = make_config(model__block="op", model__depth=depth).model
    assert model.beta == pytest.approx((2 * depth) ** -0.5)
    assert model.beta == model.beta_attention == model.beta_mlp


def test_the_released_code_norms_the_input_of_block_0_alone(make_config: MakeConfig) -> None:
  network = build_network(make_config(model__block="op", model__first_attention_norm=True))
  first, rest = network.shapes["stacks"]["0"], network.shapes["stacks"]["1"]
  assert set(first["attention_norm"]) == {"scale", "bias"} and "attention_norm" not in rest
  assert first["mlp"]["up"]["kernel"].shape[0] == 1 and rest["mlp"]["up"]["kernel"].shape[0] == 2


def test_attention_stays_inside_a_document(make_config: MakeConfig) -> None:
  """A document's logits are those it has alone in a window, positions restarted."""
  for positions in ("learned", "rotary"):
    network = build_network(make_config(model__positions=positions))
    params = network.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(1, 64, (1, 16))
    documents = np.repeat([[0, 1, 2]], [5, 8, 3], axis=1)
    apply = jax.jit(network.apply)
    together, _ = apply(params, tokens, documents)
    alone, _ = apply(params, np.pad(tokens[:, 5:13], ((0, 0), (0, 8))))
    np.testing.assert_allclose(together[:, 5:13], alone[:, :8], atol=1e-6)
    crossing, _ = apply(params, tokens)
    assert np.abs(crossing[:, 5:13] - alone[:, :8]).max() > 1e-5


def test_rotary_depends_on_distance_alone() -> None:
  rng = np.random.default_rng(0)
  q, k = (rng.standard_normal((1, 1, 1, 8)).astype(np.float32) for _ in range(2))

  def score(i: int, j: int) -> float:
    turned = rotate(q, jnp.array([[i]]), 1e4), rotate(k, jnp.array([[j]]), 1e4)
    return float(jnp.sum(turned[0] * turned[1]))

  assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
  assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_tanh_cap_bounds_the_logits(make_config: MakeConfig) -> None:
  """With a cap of 1 no allowed weight can be e^2 times another, however large the logits."""
  q = np.random.default_rng(0).standard_normal((1, 4, 1, 8)).astype(np.float32) * 100
  values = jnp.eye(8)[None, :4, None]
  softmax = PlainSoftmax(make_config().model)
  weights = attend(q, q, values, None, softmax, cap=1.0)[0, :, 0, :4]
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
  assert np.all(np.triu(weights, 1) == 0)
  assert weights[3].max() / weights[3].min() <= np.exp(2) * (1 + 1e-5)


def test_dropout_drops_its_share_and_only_in_training(make_config: MakeConfig) -> None:
  assert make_config(model__dropout=0.25).model.embedding_dropout == 0.25
  network = build_network(make_config(model__dropout=0.25, model__embedding_dropout=0.5))
  params = network.init(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(1, 64, (8, 16))

  def observe(site: str, x: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
    return {"zero": jnp.mean(x == 0)}

  dropped = network.apply(params, tokens, dropout_key=jax.random.key(1), observe=observe)[1]
  for site in ("attn_out", "mlp_out"):
    np.testing.assert_allclose(dropped[site]["zero"], 0.25, atol=0.03)
  np.testing.assert_allclose(dropped["resid_pre"]["zero"][0], 0.5, atol=0.03)
  a, b = (network.apply(params, tokens, dropout_key=jax.random.key(i))[0] for i in (1, 2))
  assert np.any(a != b)
  assert np.all(network.apply(params, tokens, observe=observe)[1]["mlp_out"]["zero"] == 0)


def test_dropout_of_attention_s_weights(make_config: MakeConfig) -> None:
  """By its own rate; what is left is scaled up; no weight of a later token comes in."""
  # Query t weighs t + 1 keys alike, and a head's output is a row of weights.
  context = Context(jnp.zeros((8, 16)), dropout_rate=0.9, dropout_key=jax.random.key(2))
  module = Attention(nnx.Rngs(0), make_config(
      model__width=16, model__heads=1, model__attention_dropout=0.4).model)
  for linear, matrix in ((module.query, np.zeros((16, 16))), (module.value, np.eye(16)),
                         (module.out, np.eye(16))):
    linear.kernel[...] = jnp.asarray(matrix, jnp.float32).reshape(linear.kernel.shape)
  values = jnp.broadcast_to(jnp.eye(16), (8, 16, 16))
  weights = module(values, context) * jnp.arange(1, 17)[:, None]
  lower = np.tril(np.ones((16, 16), bool))
  assert np.all(weights[:, ~lower] == 0)
  dropped = weights[:, lower] == 0
  assert np.mean(dropped) == pytest.approx(0.4, abs=0.05)
  np.testing.assert_allclose(weights[:, lower][~dropped], 1 / 0.6, rtol=1e-5)


def test_stretched_frequencies(make_config: MakeConfig) -> None:
  """By wavelengths, case by case, as the paper's authors have it; in float64."""
  theta, factor, low, high, length, size = 5e5, 8.0, 1.0, 4.0, 8192, 64
  frequencies = [theta ** (-2 * i / size) for i in range(size // 2)]
  slowed = []
  for frequency in frequencies:
    wavelength = 2 * np.pi / frequency
    if wavelength < length / high:
      slowed.append(frequency)
    elif wavelength > length / low:
      slowed.append(frequency / factor)
    else:
      share = (length / wavelength - low) / (high - low)
      slowed.append((1 - share) * frequency / factor + share * frequency)
  found = frequencies * llama3_scale(theta, size // 2, factor, low, high, length)
  np.testing.assert_allclose(found, slowed, rtol=1e-12)
  assert {round(slow / plain, 6) for slow, plain in zip(slowed, frequencies)} > {1.0, 0.125}

  model = make_config(model__positions="rotary", model__rope_scaling="linear", model__rope_factor=4,
                      model__rope_fraction=0.5).model
  x = np.random.default_rng(0).standard_normal((1, 3, 2, 8)).astype(np.float32)
  scale = frequency_scale(model)
  assert scale == (0.25, 0.25)
  np.testing.assert_allclose(rotate(x, jnp.array([[4, 8, 40]]), 300.0, 0.5, scale),
                             rotate(x, jnp.array([[1, 2, 10]]), 300.0, 0.5), atol=1e-6)
