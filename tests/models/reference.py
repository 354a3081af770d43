"""A model's parts once more in float64 NumPy, computed from the arrays at its probes.

Written from the papers' formulas, one query at a time where attention is concerned. A new norm,
block, MLP, softmax or gate gets one entry in NORMS, BLOCKS, MLPS, SOFTMAXES or GATES.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from of_jax.config import Config, ModelConfig

Array = np.ndarray
T = TypeVar("T")
ATOL = 2e-5


def oracle(table: Mapping[str, T], title: str, name: str) -> T:
  """The entry of a variant in `title`, one of the tables below."""
  if name not in table:
    raise LookupError(f"`{name}` has no oracle: add one named {name} to {title} of "
                      "tests/models/reference.py")
  return table[name]


def sigmoid(x: Array) -> Array:
  return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def divide(model: ModelConfig, x: Array, mean_square: Any) -> Array:
  if model.norm_eps_placement == "inside":
    return x / np.sqrt(mean_square + model.norm_eps)
  return x / (np.sqrt(mean_square) + model.norm_eps)


def rms(model: ModelConfig, x: Array) -> Array:
  return divide(model, x, np.mean(x ** 2, -1, keepdims=True))


def layer(model: ModelConfig, x: Array) -> Array:
  """Without gain and offset; eps is inside the root unless all norms have it outside."""
  placement = "outside" if model.norm_eps_placement == "outside" else "inside"
  model = dataclasses.replace(model, norm_eps_placement=placement)
  return rms(model, x - x.mean(-1, keepdims=True))


def crms(model: ModelConfig, x: Array) -> Array:
  """RMSNorm of the vector with its last neuron, without that."""
  whole = np.concatenate([x, -x.sum(-1, keepdims=True)], -1)
  assert np.allclose(whole.mean(-1), 0)
  return rms(model, whole)[..., :-1]


def l1(model: ModelConfig, x: Array) -> Array:
  """Without gain and offset."""
  centred = x - x.mean(-1, keepdims=True)
  return centred / (np.abs(centred).mean(-1, keepdims=True) + model.norm_eps)


# Norm -> its output in evaluation. The mapping holds the norm's parameters by their names; one
# that it does not hold has its value of a fresh model.
NORMS: dict[str, Callable[[ModelConfig, Array, Mapping[str, Any]], Array]] = {
    "none": lambda model, x, p: x,
    "rms": lambda model, x, p: rms(model, x) * p.get("scale", 1),
    "srms": lambda model, x, p: rms(model, x),
    "ss": lambda model, x, p: rms(model, x) * p.get("scale", 1),
    "crms": lambda model, x, p: crms(model, x),
    "layer": lambda model, x, p: layer(model, x) * p.get("scale", 1) + p.get("bias", 0),
    "dyt": lambda model, x, p: (np.tanh(p.get("alpha", model.dyt_alpha) * x) * p.get("scale", 1)
                                + p.get("bias", 0)),
    "power": lambda model, x, p: (
        divide(model, rms(model, x), p.get("running_square", 1)) * p.get("scale", 1)
        + p.get("bias", 0)),
    "l1": lambda model, x, p: (l1(model, x) * p.get("scale", math.sqrt(2 / math.pi))
                               + p.get("bias", 0)),
    "batch": lambda model, x, p: (
        divide(model, x - p.get("running_mean", 0), p.get("running_variance", 1))
        * p.get("scale", 1) + p.get("bias", 0)),
    "unified": lambda model, x, p: (
        divide(model, x, p.get("running_square", 1)) * p.get("scale", 1) + p.get("bias", 0)),
}


def norm(model: ModelConfig, x: Array, name: str = "") -> Array:
  """The fresh norm `name`, default the model's, in evaluation."""
  return oracle(NORMS, "NORMS", name or model.norm)(model, x, {})


def rotate(x_BxTxHxK: Array, theta: float, fraction: float) -> Array:
  """Pairs (i, i + K / 2) as complex numbers, turned by position x theta^(-2i / K)."""
  size = int(x_BxTxHxK.shape[-1] * fraction)
  half = size // 2
  complex_ = x_BxTxHxK[..., :half] + 1j * x_BxTxHxK[..., half:size]
  angle = np.arange(x_BxTxHxK.shape[1])[:, None] * theta ** (-2 * np.arange(half) / (2 * half))
  turned = complex_ * np.exp(1j * angle)[:, None]
  return np.concatenate([turned.real, turned.imag, x_BxTxHxK[..., size:]], -1)


def evonorm_s0(x: Array) -> Array:
  """Fresh, of each token's groups of units apart."""
  units = x.shape[-1]
  groups = max(n for n in range(1, 33) if units % n == 0)
  variance = x.reshape(*x.shape[:-1], groups, -1).var(-1)
  return x * sigmoid(x) / np.sqrt(np.repeat(variance, units // groups, -1) + 1e-5)


def evonorm_b0(x: Array) -> Array:
  """Fresh, in evaluation."""
  return x / np.maximum(math.sqrt(1 + 1e-5), x + np.sqrt(x.var(1, keepdims=True) + 1e-5))


ACTIVATIONS: dict[str, Callable[[ModelConfig, Array], Array]] = {
    "relu": lambda model, x: np.maximum(x, 0),
    "leaky_relu": lambda model, x: np.where(x > 0, x, model.leaky_relu_slope * x),
    "gelu": lambda model, x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi)
                                                  * (x + 0.044715 * x ** 3))),
    "gelu_exact": lambda model, x: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda model, x: x * sigmoid(x),
    "selu": lambda model, x: 1.0507009873554805 * np.where(
        x > 0, x, 1.6732632423543772 * (np.exp(x) - 1)),
    "sigmoid": lambda model, x: sigmoid(x),
    "identity": lambda model, x: x,
    "evonorm_s0": lambda model, x: evonorm_s0(x),
    "evonorm_b0": lambda model, x: evonorm_b0(x),
}
# Form of the MLP -> phi, gated or not.
MLPS = {"relu": ("relu", False), "leaky_relu": ("leaky_relu", False), "gelu": ("gelu", False),
        "gelu_exact": ("gelu_exact", False),
        "silu": ("silu", False), "selu": ("selu", False), "glu": ("sigmoid", True),
        "reglu": ("relu", True), "geglu": ("gelu", True), "swiglu": ("silu", True),
        "sglu": ("identity", True), "evonorm_s0": ("evonorm_s0", False),
        "evonorm_b0": ("evonorm_b0", False), "none": ("identity", False)}


def layer_params(params: Any, layer: int) -> Any:
  """The parameters of block `layer`, in float64."""

  def take(tree: Any, index: int) -> Any:
    if isinstance(tree, dict):
      return {name: take(part, index) for name, part in tree.items()}
    return np.asarray(tree[index], np.float64)

  for stack in params["stacks"].values():
    depth = len(stack["attention"]["query"]["kernel"])
    if layer < depth:
      return take(stack, layer)
    layer -= depth
  raise IndexError(layer)


def double(sites: dict[str, Array], layer: int) -> dict[str, Array]:
  return {site: x[layer].astype(np.float64) for site, x in sites.items() if site != "final"}


def same(a: Array, b: Array, what: str) -> None:
  np.testing.assert_allclose(a, b, rtol=0, atol=ATOL * max(1, np.abs(b).max()), err_msg=what)


@dataclasses.dataclass(frozen=True)
class Block:
  """One block's arrays, and what its formula is made of.

  Attributes:
    layer: its number, from 0.
    params: its parameters.
    x, h: the stream before attention and before the MLP.
    a, m: the outputs of the two branches, norms and gains behind them included.
  """

  model: ModelConfig
  layer: int
  params: Any
  x: Array
  h: Array
  a: Array
  m: Array

  def norm(self, x: Array, name: str = "") -> Array:
    return norm(self.model, x, name)

  def skip(self, x: Array) -> Array:
    return x if self.model.skip_gain is None else self.model.skip_gain * x


# attn_in, resid_mid, mlp_in and the next block's resid_pre.
Expected = tuple[Array, Array, Array, Array]


def pre(b: Block) -> Expected:
  return b.norm(b.x), b.skip(b.x) + b.a, b.norm(b.h), b.skip(b.h) + b.m


def post(b: Block) -> Expected:
  return b.x, b.norm(b.skip(b.x) + b.a), b.h, b.norm(b.skip(b.h) + b.m)


def post_released(b: Block) -> Expected:
  x, h = b.norm(b.x), b.norm(b.h)
  return x, b.skip(x) + b.a, h, b.skip(h) + b.m


def without_norm(b: Block) -> Expected:
  return b.x, b.skip(b.x) + b.a, b.h, b.skip(b.h) + b.m


def mix(b: Block) -> Expected:
  return (post if b.layer < math.floor(b.model.mix_alpha * b.model.depth + 1e-9) else pre)(b)


def deepnorm(b: Block) -> Expected:
  alpha = (2 * b.model.depth) ** 0.25
  return (b.x, b.norm(alpha * b.skip(b.x) + b.a), b.h, b.norm(alpha * b.skip(b.h) + b.m))


def layernorm_scaling(b: Block) -> Expected:
  root = math.sqrt(b.layer + 1)
  return b.norm(b.x) / root, b.skip(b.x) + b.a, b.norm(b.h) / root, b.skip(b.h) + b.m


def parallel(b: Block) -> Expected:
  return b.norm(b.x), b.x, b.norm(b.x), b.skip(b.x) + b.a + b.m


def gated(b: Block) -> Expected:
  return (gated_norm(b.model, b.params["attention_norm"], b.x), b.skip(b.x) + b.a,
          gated_norm(b.model, b.params["mlp_norm"], b.h), b.skip(b.h) + b.m)


def outlier_protected(b: Block) -> Expected:
  has_norm = b.model.first_attention_norm and b.layer == 0
  alpha = b.model.mlp_input_scale
  assert alpha is not None
  return (b.norm(b.x, "layer") if has_norm else b.x, b.skip(b.x) + b.a, alpha * b.h,
          b.skip(b.h) + b.m)


BLOCKS: dict[str, Callable[[Block], Expected]] = {
    "pre": pre, "nap": pre, "peri": pre, "post": post, "post_released": post_released,
    "output": without_norm, "residual_scaled": without_norm, "mix": mix, "deepnorm": deepnorm,
    "layernorm_scaling": layernorm_scaling, "parallel": parallel, "parallel_two_norms": parallel,
    "gated_norm": gated, "op": outlier_protected,
}
# Blocks whose branches end in a norm, before their gain.
BRANCHES_END_IN_NORM = ("peri", "output")


def check_block(config: Config, params: Any, sites: dict[str, Array]) -> None:
  """What each half reads, and the stream behind it, from the stream and the branches."""
  model = config.model
  for index in range(model.depth):
    at = double(sites, index)
    expected = oracle(BLOCKS, "BLOCKS", model.block)(Block(
        model, index, layer_params(params, index), at["resid_pre"], at["resid_mid"],
        at["attn_out"], at.get("mlp_out", 0 * at["attn_out"])))
    what = f"{model.block}, block {index}: "
    same(at["attn_in"], expected[0], what + "attn_in")
    same(at["resid_mid"], expected[1], what + "resid_mid")
    if model.mlp == "none":
      assert "mlp" not in layer_params(params, index)
      expected = (*expected[:3], at["resid_mid"])
    else:
      same(at["mlp_in"], expected[2], what + "mlp_in")
    if index + 1 < model.depth:
      same(sites["resid_pre"][index + 1].astype(np.float64), expected[3], what + "stream")


def gated_norm(model: ModelConfig, p: Any, x: Array) -> Array:
  normed = norm(model, p["affine"] * x)
  down = normed @ p["down"]["kernel"]
  return normed * sigmoid(down * sigmoid(down) @ p["up"]["kernel"])


SOFTMAXES: dict[str, Callable[[ModelConfig, Array], Array]] = {
    "plain": lambda model, logits: softmax(logits),
    "clipped": lambda model, logits: np.clip(
        (model.softmax_zeta - (model.softmax_gamma or 0)) * softmax(logits)
        + (model.softmax_gamma or 0), 0, 1),
}


def gate_heads(y_BxTxHxK: Array, x_BxTxD: Array, p: Any) -> Array:
  gated, size = np.empty_like(y_BxTxHxK), y_BxTxHxK.shape[-1]
  for b, t, head in np.ndindex(y_BxTxHxK.shape[:3]):
    own = x_BxTxD[b, t, head * size:][:size]
    logit = own @ p["kernel"][head] + p["bias"][head]
    gated[b, t, head] = y_BxTxHxK[b, t, head] * sigmoid(logit)
  return gated


# Gate -> gated heads, from the heads, what attention reads and the gate's parameters.
GATES: dict[str, Callable[[Array, Array, Any], Array]] = {
    "none": lambda y, x, p: y,
    "head": gate_heads,
    "element": lambda y, x, p: y * sigmoid(np.einsum("btd,dhk->bthk", x, p["linear"]["kernel"])),
}


def linear_attention(model: ModelConfig, p: Any, x: Array, layer: int) -> tuple[Array, ...]:
  """q, k and the gated heads of one block, by the recurrence; ours to a power of two of heads."""
  q, k, v, u = (np.einsum("btd,dhk->bthk", x, matrix(part, 1)) for part in (
      p["query"], p["key"], p["value"], p["gate"]["linear"]))
  q, k = q * sigmoid(q), k * sigmoid(k)
  height = layer / (model.depth - 1) if model.depth > 1 else 0
  forgets = np.exp(-2.0 ** (-8 * np.arange(1, model.heads + 1) / model.heads)
                   * (1 - height + 1e-5))
  theta = p.get("theta")
  if theta is None or model.linear_positions == "first" and layer:
    theta = np.zeros(q.shape[2:])
  state = np.zeros((len(x), model.heads, 2 * q.shape[-1], q.shape[-1]))
  y = np.empty_like(v)

  def turned(z: Array, t: int) -> Array:
    return np.concatenate([z[:, t] * np.cos(t * theta), z[:, t] * np.sin(t * theta)], -1)

  for t in range(x.shape[1]):
    state = forgets[:, None, None] * state + np.einsum("bhj,bhk->bhjk", turned(k, t), v[:, t])
    y[:, t] = np.einsum("bhj,bhjk->bhk", turned(q, t), state)
  flat = y.reshape(*x.shape[:2], -1)
  normed = flat / np.sqrt(np.mean(flat ** 2, -1, keepdims=True) + model.norm_eps)
  return q, k, u * normed.reshape(y.shape)


def check_linear_attention(config: Config, params: Any, sites: dict[str, Array]) -> None:
  """attn_q, attn_k and attn_out of linear attention, from attn_in."""
  for layer in range(config.model.depth):
    at, block_p = double(sites, layer), layer_params(params, layer)
    p, x = block_p["attention"], at["attn_in"]
    q, k, y = linear_attention(config.model, p, x, layer)
    same(at["attn_q"], q.reshape(*x.shape[:2], -1), f"attn_q {layer}")
    same(at["attn_k"], k.reshape(*x.shape[:2], -1), f"attn_k {layer}")
    out = np.einsum("bthk,hkd->btd", y, matrix(p["out"], 2))
    same(at["attn_out"], finished(config.model, out, config.model.beta_attention,
                                  block_p.get("attention_gain")), f"attn_out {layer}")


def check_attention(config: Config, params: Any, sites: dict[str, Array]) -> None:
  """attn_q, attn_k and attn_out, from attn_in."""
  model = config.model
  if model.attention == "linear":
    check_linear_attention(config, params, sites)
    return
  head_dim = model.head_dim
  assert head_dim is not None
  for layer in range(model.depth):
    at, block_p = double(sites, layer), layer_params(params, layer)
    p, x = block_p["attention"], at["attn_in"]

    def project(name: str) -> Array:
      y = np.einsum("btd,dhk->bthk", x, matrix(p[name], 1))
      return y + p[name]["bias"] if "bias" in p[name] else y

    slices = x.reshape(*x.shape[:2], -1, head_dim) if x.shape[-1] % head_dim == 0 else x
    q = project("query")
    k = {"own": lambda: project("key"), "queries": lambda: q, "input": lambda: slices}[
        model.attention_keys]()
    v = project("value") if model.attention_values == "own" else slices
    if model.qk_norm != "none":
      if model.qk_norm_over == "width":
        flat_q, flat_k = (z.reshape(*x.shape[:2], 1, -1) for z in (q, k))
        q = norm(model, flat_q, model.qk_norm).reshape(q.shape)
        k = norm(model, flat_k, model.qk_norm).reshape(k.shape)
      else:
        q, k = norm(model, q, model.qk_norm), norm(model, k, model.qk_norm)
    if model.positions == "rotary":
      q, k = (rotate(z, model.rope_theta, model.rope_fraction) for z in (q, k))
    same(at["attn_q"], q.reshape(*x.shape[:2], -1), f"attn_q {layer}")
    same(at["attn_k"], k.reshape(*x.shape[:2], -1), f"attn_k {layer}")

    scale = 1 / math.sqrt(head_dim) if model.attention_scale is None else model.attention_scale
    windowed = model.attention_window is not None and (
        model.full_attention_every is None or (layer + 1) % model.full_attention_every != 0)
    y = np.zeros((*x.shape[:2], model.heads, head_dim))
    for b, t, head in np.ndindex(y.shape[:3]):
      group = head // (model.heads // k.shape[2])
      start = max(0, t + 1 - model.attention_window) if windowed else 0
      keys, values = k[b, start:t + 1, group], v[b, start:t + 1, group]
      if model.attention_sink == "key_value":
        keys = np.vstack([keys, p["sink"]["key"][group]])
        values = np.vstack([values, p["sink"]["value"][group]])
      weights = weigh(model, keys @ q[b, t, head] * scale)
      y[b, t, head] = weights @ values
    y = oracle(GATES, "GATES", model.attention_gate)(y, x, p.get("gate"))
    out = (y.reshape(x.shape) if model.attention_values == "input"
           else np.einsum("bthk,hkd->btd", y, matrix(p["out"], 2)))
    same(at["attn_out"], finished(model, out, model.beta_attention, block_p.get("attention_gain")),
         f"attn_out {layer}")


def weigh(model: ModelConfig, logits: Array) -> Array:
  """One query's weights from its logits."""
  if model.attention_cap is not None:
    logits = model.attention_cap * np.tanh(logits / model.attention_cap)
  return oracle(SOFTMAXES, "SOFTMAXES", model.attention_softmax)(model, logits)


def check_mlp(config: Config, params: Any, sites: dict[str, Array]) -> None:
  """mlp_hidden and mlp_out, from mlp_in."""
  model = config.model
  if model.mlp == "none":
    return
  activation, gated = oracle(MLPS, "MLPS", model.mlp)
  for layer in range(model.depth):
    at, block_p = double(sites, layer), layer_params(params, layer)
    p, x = block_p["mlp"], at["mlp_in"]
    z = x @ matrix(p["gate" if gated else "up"], 1)
    if model.mlp_norm != "none":
      z = norm(model, z, model.mlp_norm)
    hidden = ACTIVATIONS[activation](model, z) * (x @ matrix(p["up"], 1) if gated else 1)
    same(at["mlp_hidden"], hidden, f"mlp_hidden {layer}")
    same(at["mlp_out"], finished(model, hidden @ matrix(p["down"], 1), model.beta_mlp,
                                 block_p.get("mlp_gain")), f"mlp_out {layer}")


def matrix(p: Any, inputs: int) -> Array:
  """A linear map's kernel, with sigma-Reparam's gain if it has one."""
  kernel = p["kernel"]
  if "gamma" not in p:
    return kernel
  # gamma starts at the model's own estimate of sigma, which cancels here.
  from of_jax.models.sigma_reparam import spectral_norm
  flat = kernel.reshape(math.prod(kernel.shape[:inputs]), -1).astype(np.float32)
  return kernel * (p["gamma"] / np.asarray(spectral_norm(flat), np.float64))


def finished(model: ModelConfig, y: Array, gain: float | None, trained: Any) -> Array:
  """A branch's output behind its norm, where the block has one there, and its gain."""
  if model.block in BRANCHES_END_IN_NORM:
    y = norm(model, y)
  if trained:
    return y * trained["value"]
  return y if gain is None else y * gain
