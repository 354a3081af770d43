"""What a model's parts compute, once more in float64 NumPy, from the arrays at its probes.

Written from the papers' formulas, one query at a time where attention is concerned. Norms are those
of a fresh model, gains 1 and offsets 0.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from of_jax.config import Config, ModelConfig

Array = np.ndarray
ATOL = 2e-5


def sigmoid(x: Array) -> Array:
  return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def norm(model: ModelConfig, x: Array, name: str = "") -> Array:
  """The fresh norm `name`, default the model's, in evaluation."""
  name = name or model.norm
  if name == "none":
    return x
  if name == "dyt":
    return np.tanh(model.dyt_alpha * x)
  if name == "layer":
    x = x - x.mean(-1, keepdims=True)
    model = dataclasses.replace(model, norm_eps_placement="outside" if (
        model.norm_eps_placement == "outside") else "inside")
  mean_square = np.mean(x ** 2, -1, keepdims=True)
  if name == "crms":
    whole = np.concatenate([x, -x.sum(-1, keepdims=True)], -1)
    mean_square = np.mean(whole ** 2, -1, keepdims=True)
  if name == "power":
    # The running mean square starts at 1.
    return divide(model, divide(model, x, mean_square), np.ones(()))
  return divide(model, x, mean_square)


def divide(model: ModelConfig, x: Array, mean_square: Array) -> Array:
  if model.norm_eps_placement == "inside":
    return x / np.sqrt(mean_square + model.norm_eps)
  return x / (np.sqrt(mean_square) + model.norm_eps)


def rotate(x_BxTxHxK: Array, theta: float, fraction: float) -> Array:
  """Pairs (i, i + K / 2) as complex numbers, turned by position x theta^(-2i / K)."""
  size = int(x_BxTxHxK.shape[-1] * fraction)
  half = size // 2
  complex_ = x_BxTxHxK[..., :half] + 1j * x_BxTxHxK[..., half:size]
  angle = np.arange(x_BxTxHxK.shape[1])[:, None] * theta ** (-2 * np.arange(half) / (2 * half))
  turned = complex_ * np.exp(1j * angle)[:, None]
  return np.concatenate([turned.real, turned.imag, x_BxTxHxK[..., size:]], -1)


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
}
# Form of the MLP -> phi, gated or not.
MLPS = {"relu": ("relu", False), "leaky_relu": ("leaky_relu", False), "gelu": ("gelu", False),
        "gelu_exact": ("gelu_exact", False),
        "silu": ("silu", False), "selu": ("selu", False), "glu": ("sigmoid", True),
        "reglu": ("relu", True), "geglu": ("gelu", True), "swiglu": ("silu", True),
        "sglu": ("identity", True)}


def layer_params(params: Any, layer: int) -> Any:
  """The parameters of block `layer`, in float64."""

  def take(tree: Any, index: int) -> Any:
    if isinstance(tree, dict):
      return {name: take(part, index) for name, part in tree.items()}
    return np.asarray(tree[index], np.float64)

  for stack in params["stacks"].values():
    depth = len(stack["mlp"]["up"]["kernel"])
    if layer < depth:
      return take(stack, layer)
    layer -= depth
  raise IndexError(layer)


def double(sites: dict[str, Array], layer: int) -> dict[str, Array]:
  return {site: x[layer].astype(np.float64) for site, x in sites.items() if site != "final"}


def same(a: Array, b: Array, what: str) -> None:
  np.testing.assert_allclose(a, b, rtol=0, atol=ATOL * max(1, np.abs(b).max()), err_msg=what)


def check_block(config: Config, params: Any, sites: dict[str, Array]) -> None:
  """What each half reads, and the stream behind it, from the stream and the branches."""
  model = config.model
  for layer in range(model.depth):
    at, block = double(sites, layer), model.block
    x, h, a, m = (at[s] for s in ("resid_pre", "resid_mid", "attn_out", "mlp_out"))

    def n(x: Array) -> Array:
      return norm(model, x)

    def s(x: Array) -> Array:
      return x if model.skip_gain is None else model.skip_gain * x

    if block == "mix":
      block = "post" if layer < math.floor(model.mix_alpha * model.depth + 1e-9) else "pre"
    if block in ("pre", "nap", "peri"):
      expected = n(x), s(x) + a, n(h), s(h) + m
    elif block == "post":
      expected = x, n(s(x) + a), h, n(s(h) + m)
    elif block == "post_released":
      expected = n(x), s(n(x)) + a, n(h), s(n(h)) + m
    elif block == "output":
      expected = x, s(x) + a, h, s(h) + m
    elif block == "deepnorm":
      alpha = (2 * model.depth) ** 0.25
      expected = x, n(alpha * s(x) + a), h, n(alpha * s(h) + m)
    elif block == "layernorm_scaling":
      expected = n(x) / math.sqrt(layer + 1), s(x) + a, n(h) / math.sqrt(layer + 1), s(h) + m
    elif block in ("parallel", "parallel_two_norms"):
      expected = n(x), x, n(x), s(x) + a + m
    elif block == "residual_scaled":
      expected = x, s(x) + a, h, s(h) + m
    elif block == "gated_norm":
      p = layer_params(params, layer)
      expected = (gated_norm(model, p["attention_norm"], x), s(x) + a,
                  gated_norm(model, p["mlp_norm"], h), s(h) + m)
    else:
      assert block == "op", f"no formula for {block}"
      first = model.first_attention_norm and layer == 0
      expected = (norm(model, x, "layer") if first else x, s(x) + a, model.mlp_input_scale * h,
                  s(h) + m)
    what = f"{block}, block {layer}: "
    same(at["attn_in"], expected[0], what + "attn_in")
    same(h, expected[1], what + "resid_mid")
    same(at["mlp_in"], expected[2], what + "mlp_in")
    if layer + 1 < model.depth:
      same(sites["resid_pre"][layer + 1].astype(np.float64), expected[3], what + "stream")


def gated_norm(model: ModelConfig, p: Any, x: Array) -> Array:
  normed = norm(model, p["affine"] * x)
  down = normed @ p["down"]["kernel"]
  return normed * sigmoid(down * sigmoid(down) @ p["up"]["kernel"])


def check_attention(config: Config, params: Any, sites: dict[str, Array]) -> None:
  """attn_q, attn_k and attn_out, from attn_in."""
  model = config.model
  head_dim = model.head_dim
  assert head_dim is not None
  for layer in range(model.depth):
    at, block_p = double(sites, layer), layer_params(params, layer)
    p, x = block_p["attention"], at["attn_in"]

    def project(name: str) -> Array:
      y = np.einsum("btd,dhk->bthk", x, matrix(p[name], 1))
      return y + p[name]["bias"] if "bias" in p[name] else y

    q, k, v = project("query"), project("key"), project("value")
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
      if model.attention_gate == "head":
        own = x[b, t, head * head_dim:][:head_dim]
        y[b, t, head] *= sigmoid(own @ p["gate"]["kernel"][head] + p["gate"]["bias"][head])
    if model.attention_gate == "element":
      y = y * sigmoid(np.einsum("btd,dhk->bthk", x, p["gate"]["linear"]["kernel"]))
    out = np.einsum("bthk,hkd->btd", y, matrix(p["out"], 2))
    same(at["attn_out"], finished(model, out, model.beta_attention, block_p.get("attention_gain")),
         f"attn_out {layer}")


def weigh(model: ModelConfig, logits: Array) -> Array:
  """One query's weights from its logits."""
  if model.attention_cap is not None:
    logits = model.attention_cap * np.tanh(logits / model.attention_cap)
  weights = softmax(logits)
  if model.attention_softmax == "clipped":
    zeta, gamma = model.softmax_zeta, model.softmax_gamma
    weights = np.clip((zeta - gamma) * weights + gamma, 0, 1)
  return weights


def check_mlp(config: Config, params: Any, sites: dict[str, Array]) -> None:
  """mlp_hidden and mlp_out, from mlp_in."""
  model = config.model
  activation, gated = MLPS[model.mlp]
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
  if model.block in ("peri", "output"):
    y = norm(model, y)
  if trained:
    return y * trained["value"]
  return y if gain is None else y * gain
