"""What the papers say of their blocks and regulators, on freshly drawn models."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from of_jax.config import Config
from of_jax.models.attention import Attention
from of_jax.models.functional import build_network
from of_jax.models.probe import Context
from of_jax.models.sigma_reparam import spectral_norm
from of_jax.models.softmaxes.clipped import ClippedSoftmax

MakeConfig = Callable[..., Config]
DEPTH = 96


def moments(config: Config, models: int = 1) -> dict[str, np.ndarray]:
  """Mean square at every site, [layers], averaged over some models and random tokens."""
  network = build_network(config)
  tokens = np.random.default_rng(0).integers(1, 64, (4, 16))

  def observe(site: str, x: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
    return {"m2": jnp.mean(jnp.square(x))}

  def run(key: jax.Array) -> Any:
    statistics = network.apply(network.init(key), tokens, observe=observe)[1]
    return {site: kept["m2"] for site, kept in statistics.items()}

  result = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), models))
  return {site: np.mean(m2, 0) for site, m2 in jax.device_get(result).items()}


def unit_gain(width: int, **fields: Any) -> dict[str, Any]:
  """Fields with which an MLP of ReLU keeps its input's mean square: a He init.

  The mean square behind W_up is s^2 width times that before, ReLU halves it, W_down gives s^2 4
  width: 1 = 2 s^4 width^2. Values and attention's output, without a ReLU, make s^4 width^2 = 1/2.
  """
  std = (2 * width ** 2) ** -0.25
  return {"model__width": width, "model__init_std": std, "model__embedding_scale": 1 / std,
          "model__position_init_std": 0, **fields}


@pytest.mark.parametrize("block, fields, growth", (
    # (1 + 1 / L)^L for the MLP, and up to (1 + 1 / 2L)^L for attention: between e and e^1.5.
    ("op", {"model__beta": DEPTH ** -0.5}, "bounded"),
    ("op", {"model__beta": 1}, "exponential"),
    ("pre", {}, "linear"),
    ("peri", {}, "linear"),
    ("post", {}, "constant"),
), ids=("op", "op unscaled", "pre", "peri", "post"))
def test_stream_over_96_layers(block: str, fields: dict[str, Any], growth: str,
                               make_config: MakeConfig) -> None:
  m2 = moments(make_config(**unit_gain(32, model__block=block, model__depth=DEPTH, **fields)))
  stream = m2["resid_pre"]
  np.testing.assert_allclose(stream[0], 1, rtol=0.1)
  if growth == "bounded":
    assert stream.max() / stream.min() < math.exp(1.5) * 1.2
    assert stream[-1] / stream[0] > math.e * 0.8
  elif growth == "exponential":
    assert stream[-1] / stream[0] > 2.0 ** (DEPTH - 1) * 0.1
  elif growth == "constant":
    np.testing.assert_allclose(stream[1:], 1, rtol=1e-4)
  else:
    exponent = math.log(stream[-1] / stream[DEPTH // 4]) / math.log((DEPTH - 1) / (DEPTH // 4))
    assert 0.8 < exponent < 1.2
    assert stream[-1] > DEPTH / 2


@pytest.mark.parametrize("scale, ratio", (
    ({"model__beta": 1}, 2),
    ({"model__residual_scale": "inverse_depth"}, 1 + 1 / 8 ** 2),
    ({"model__residual_scale": "inverse_sqrt_depth"}, 1 + 1 / 8),
), ids=("unscaled", "1/L", "1/sqrt(L)"))
def test_residual_expansion(scale: dict[str, Any], ratio: float, make_config: MakeConfig) -> None:
  """Of C(l, k) paths through k of l blocks each has lambda^2k: (1 + lambda^2)^l, within 10 %."""
  fields = unit_gain(128, model__block="residual_scaled", model__depth=8,
                     model__beta_attention=0, **scale)
  stream = moments(make_config(**fields), 4)["resid_pre"]
  paths = [sum(math.comb(layer, k) * (ratio - 1) ** k for k in range(layer + 1))
           for layer in range(8)]
  np.testing.assert_allclose(stream / stream[0], paths, rtol=0.1)


def test_zero_init_starts_at_the_identity_and_leaves_it(make_config: MakeConfig) -> None:
  """SkipInit: the stream passes unchanged, and the gains alone have a gradient at first."""
  config = make_config(model__block="residual_scaled", model__residual_scale="zero",
                       model__beta_trainable=True)
  network = build_network(config)
  params = network.init(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(1, 64, (2, 16))

  def loss(params: Any) -> tuple[jax.Array, Any]:
    logits, statistics = network.apply(
        params, tokens, observe=lambda site, x, first: {"x": x})
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 3]), statistics

  gradient, sites = jax.jit(jax.grad(loss, has_aux=True))(params)
  for x in sites["resid_pre"]["x"]:
    np.testing.assert_array_equal(x, sites["final"]["x"][0])
  stack = gradient["stacks"]["0"]
  assert np.all(stack["attention_gain"]["value"] != 0) and np.all(stack["mlp_gain"]["value"] != 0)
  assert not np.any(stack["mlp"]["up"]["kernel"])


def test_mix_of_nothing_is_pre_and_of_all_is_post(make_config: MakeConfig) -> None:
  """Bit for bit; between them the blocks are counted from the bottom."""
  tokens = np.random.default_rng(0).integers(1, 64, (2, 16))

  def logits(**fields: Any) -> np.ndarray:
    network = build_network(make_config(**fields))
    return np.asarray(jax.jit(lambda key: network.apply(network.init(key), tokens)[0])(
        jax.random.key(0)))

  post = logits(model__block="post")
  np.testing.assert_array_equal(logits(model__block="mix", model__mix_alpha=1), post)
  pre = logits(model__block="pre")
  np.testing.assert_array_equal(logits(model__block="mix", model__mix_alpha=0), pre)
  assert np.abs(pre - post).max() > 1e-3
  for depth, alpha, count in ((12, 0.25, 3), (24, 0.25, 6), (7, 0.25, 1), (100, 0.29, 29)):
    shapes = build_network(make_config(
        model__block="mix", model__mix_alpha=alpha, model__depth=depth)).shapes["stacks"]
    assert [s["mlp"]["up"]["kernel"].shape[0] for s in shapes.values()] == [count, depth - count]


def test_branches_that_end_in_a_norm_have_mean_square_1(make_config: MakeConfig) -> None:
  for block in ("peri", "output"):
    config = make_config(model__block=block, model__norm="srms", model__norm_eps=0)
    m2 = moments(config)
    np.testing.assert_allclose(m2["attn_out"], 1, rtol=1e-4, err_msg=block)
    np.testing.assert_allclose(m2["mlp_out"], 1, rtol=1e-4, err_msg=block)


def test_embedding_norm_and_projection(make_config: MakeConfig) -> None:
  """The one gives the first block a mean square of 1, the other keeps every token's."""
  config = make_config(model__embedding_norm=True, model__norm="srms", model__norm_eps=0)
  np.testing.assert_allclose(moments(config)["resid_pre"][0], 1, rtol=1e-5)
  plain, projected = (moments(make_config(model__embedding_projection=on)) for on in (False, True))
  np.testing.assert_allclose(projected["resid_pre"][0], plain["resid_pre"][0], rtol=1e-5)
  network = build_network(make_config(model__embedding_projection=True))
  for matrix in network.init(jax.random.key(0))["embedding_projection"].values():
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(32), atol=1e-5)
    assert np.abs(matrix - np.eye(32)).max() > 0.5


def test_clipped_softmax_reaches_0_and_1(make_config: MakeConfig) -> None:
  """A row of weights can be exactly 0, and one weight exactly 1, at finite logits."""
  model = make_config(model__attention_softmax="clipped", model__softmax_gamma=-0.25,
                      model__softmax_zeta=1.1).model
  softmax = ClippedSoftmax(model)
  flat, sharp, masked = softmax(jnp.array(
      [[0., 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0], [1, 1, -jnp.inf, -jnp.inf, -jnp.inf, -jnp.inf]]))
  assert np.all(flat == 0)  # 1.35 / 6 - 0.25 < 0
  np.testing.assert_array_equal(sharp, [1, 0, 0, 0, 0, 0])
  np.testing.assert_allclose(masked, [0.425, 0.425, 0, 0, 0, 0], rtol=1e-6)


def test_qk_norm_bounds_the_logits(make_config: MakeConfig) -> None:
  """|q . k| / sqrt(K) <= sqrt(K) for queries and keys of mean square 1, at any scale of W."""
  for name in ("rms", "layer"):
    model = make_config(model__qk_norm=name, model__init_std=10).model
    attention = Attention(nnx.Rngs(0), model)
    seen: dict[str, jax.Array] = {}

    def observe(site: str, x: jax.Array, first: jax.Array) -> None:
      seen[site] = x.reshape(16, 4, 8)

    x = np.random.default_rng(0).standard_normal((1, 16, 32)).astype(np.float32)
    attention(x, Context(jnp.arange(16)[None], observe=observe))
    logits = np.einsum("thk,shk->hts", seen["attn_q"], seen["attn_k"]) / math.sqrt(8)
    assert np.abs(logits).max() <= math.sqrt(8) * (1 + 1e-5)
    assert np.abs(logits).max() > 0.5 * math.sqrt(8)


def test_head_gate_starts_where_it_is_told(make_config: MakeConfig) -> None:
  """With a kernel of 0 attention is scaled by 0.25, Bondarenko et al.'s start for OPT."""
  x = np.random.default_rng(0).standard_normal((1, 16, 32)).astype(np.float32)
  context = Context(jnp.arange(16)[None])
  gated = Attention(nnx.Rngs(0), make_config(model__attention_gate="head").model)
  plain = Attention(nnx.Rngs(0), make_config().model)
  gated.gate.kernel[...] = jnp.zeros((4, 8))
  np.testing.assert_allclose(gated(x, context), 0.25 * plain(x, context), rtol=1e-5, atol=1e-7)


def test_spectral_norm_against_svd() -> None:
  rng = np.random.default_rng(0)
  for shape in ((256, 256), (64, 256), (256, 8)):
    gaussian = rng.standard_normal(shape).astype(np.float32)
    largest = np.linalg.svd(gaussian, compute_uv=False)[0]
    assert 0.97 < spectral_norm(gaussian) / largest < 1 + 1e-5
    # The largest singular value twice the second.
    u, s, vt = np.linalg.svd(gaussian, full_matrices=False)
    s[0] = 2 * s[1]
    gapped = ((u * s) @ vt).astype(np.float32)
    np.testing.assert_allclose(spectral_norm(gapped), s[0], rtol=1e-5)
    # Its gradient is that of the singular value, u v^T.
    np.testing.assert_allclose(jax.grad(spectral_norm)(gapped), np.outer(u[:, 0], vt[0]),
                               atol=1e-4)
  assert spectral_norm(np.zeros((4, 4), np.float32)) == 0
  assert np.all(np.isfinite(jax.grad(spectral_norm)(np.zeros((4, 4), np.float32))))


def test_sigma_reparam_changes_nothing_at_init_and_takes_the_scale_out(
    make_config: MakeConfig) -> None:
  """gamma W / sigma(W): W at first; afterwards a multiple of W is W."""
  x = np.random.default_rng(0).standard_normal((1, 16, 32)).astype(np.float32)
  context = Context(jnp.arange(16)[None])
  attention = Attention(nnx.Rngs(0), make_config(model__sigma_reparam="attention").model)
  for linear in (attention.query, attention.key, attention.value, attention.out):
    np.testing.assert_allclose(linear.weight(), linear.kernel[...], rtol=1e-5)
    flat = np.reshape(linear.kernel[...], (32, 32))
    assert linear.gamma[...] == pytest.approx(np.linalg.svd(flat, compute_uv=False)[0], rel=0.03)
  before = attention(x, context)
  attention.value.kernel[...] = 7 * attention.value.kernel[...]
  np.testing.assert_allclose(attention(x, context), before, rtol=1e-4, atol=1e-7)
  attention.value.gamma[...] = 7 * attention.value.gamma[...]
  np.testing.assert_allclose(attention(x, context), 7 * before, rtol=1e-4, atol=1e-6)


def test_deepnorm_init_and_selu_init(make_config: MakeConfig) -> None:
  """(8L)^(-1/4) on values, output and MLP, with sigma-Reparam on its gain; SELU: 1 / inputs."""
  def kernels(**fields: Any) -> Any:
    network = build_network(make_config(model__depth=8, **fields))
    return jax.device_get(jax.jit(network.init)(jax.random.key(0)))["stacks"]["0"]

  plain, deep = kernels(model__block="post"), kernels(model__block="deepnorm")
  for part, name, factor in (("attention", "query", 1), ("attention", "key", 1),
                             ("attention", "value", 64 ** -0.25), ("mlp", "up", 64 ** -0.25),
                             ("attention", "out", 64 ** -0.25), ("mlp", "down", 64 ** -0.25)):
    np.testing.assert_allclose(deep[part][name]["kernel"], factor * plain[part][name]["kernel"],
                               rtol=1e-6)
  sigma = kernels(model__block="deepnorm", model__sigma_reparam="block")["mlp"]["down"]
  np.testing.assert_allclose(
      np.linalg.svd(sigma["kernel"], compute_uv=False)[:, 0], sigma["gamma"], rtol=0.03)
  selu = kernels(model__mlp="selu")["mlp"]
  assert np.std(selu["up"]["kernel"]) == pytest.approx(32 ** -0.5, rel=0.02)
  assert np.std(selu["down"]["kernel"]) == pytest.approx(128 ** -0.5, rel=0.02)


def test_sink_takes_the_attention_of_a_query(make_config: MakeConfig) -> None:
  """A key k' along the queries draws all weight to v', without any token's."""
  attention = Attention(nnx.Rngs(0), make_config(model__attention_sink="key_value").model)
  x = np.random.default_rng(0).standard_normal((1, 16, 32)).astype(np.float32)
  x[...] = x[:, :1]  # One token, so one query, over and over.
  query = attention.query(x)[0, 0]
  attention.sink.key[...] = 1e6 * query
  out = attention(x, Context(jnp.arange(16)[None]))
  alone = attention.out(attention.sink.value[...])
  np.testing.assert_allclose(out[0], np.broadcast_to(alone, (16, 32)), rtol=1e-5, atol=1e-7)
