"""AdamP and SGDP against NumPy float64, leaf by leaf, and the property that motivates them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from of_jax.optim import adamp, sgdp

Array = np.ndarray


def radial_free(u: Array, g: Array, p: Array, delta: float, wd_ratio: float, eps: float
                ) -> tuple[Array, float]:
  """One matrix, channels in the last axis, as the paper's Alg. 2 reads in float64."""
  for axes, size in (((0,), p.shape[0]), ((0, 1), p.size)):
    cos = np.abs((g * p).sum(axes, keepdims=True)) / (
        np.maximum(np.sqrt((g ** 2).sum(axes, keepdims=True)), eps)
        * np.maximum(np.sqrt((p ** 2).sum(axes, keepdims=True)), eps))
    if cos.max() < delta / np.sqrt(size):
      unit = p / (np.sqrt((p ** 2).sum(axes, keepdims=True)) + eps)
      return u - unit * (unit * u).sum(axes, keepdims=True), wd_ratio
  return u, 1.0


def numpy_adamp(p: Array, grads: list[Array], lr: float, b1: float, b2: float, eps: float,
                wd: float, delta: float, wd_ratio: float, nesterov: bool) -> Array:
  p = p.astype(float)
  m, v = np.zeros_like(p), np.zeros_like(p)
  for t, g in enumerate(grads, 1):
    g = g.astype(float)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    u = (b1 * m + (1 - b1) * g if nesterov else m) / (np.sqrt(v / (1 - b2 ** t)) + eps)
    ratio = 1.0
    if p.ndim > 1:
      u, ratio = radial_free(u, g, p, delta, wd_ratio, eps)
    p = p * (1 - lr * wd * ratio) - lr / (1 - b1 ** t) * u
  return p


def numpy_sgdp(p: Array, grads: list[Array], lr: float, momentum: float, dampening: float,
               wd: float, delta: float, wd_ratio: float, nesterov: bool, eps: float) -> Array:
  p = p.astype(float)
  m = np.zeros_like(p)
  for g in grads:
    g = g.astype(float)
    m = momentum * m + (1 - dampening) * g
    d = g + momentum * m if nesterov else m
    ratio = 1.0
    if p.ndim > 1:
      d, ratio = radial_free(d, g, p, delta, wd_ratio, eps)
    m = m if nesterov else d  # In place, in the authors' code.
    p = p * (1 - lr * wd * ratio / (1 - momentum)) - lr * d
  return p


def problem(seed: int, steps: int = 6) -> tuple[dict[str, Array], list[dict[str, Array]]]:
  """Gradients that pass the test by channel, as a whole, not at all, for three stacked matrices."""
  rng = np.random.default_rng(seed)
  params = {"stack": rng.normal(size=(3, 8, 5)), "one": rng.normal(size=(4, 6)),
            "vector": rng.normal(size=7), "scalar": rng.normal()}
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  grads = []
  for _ in range(steps):
    g = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), np.float32), params)
    w, stack = params["stack"], g["stack"].copy()
    channel = np.sum(w[0] ** 2, 0)
    stack[0] -= w[0] * np.sum(stack[0] * w[0], 0) / channel  # Orthogonal in every channel.
    stack[1] -= w[1] * np.sum(stack[1] * w[1]) / np.sum(w[1] ** 2)  # Orthogonal as a whole.
    stack[2] += w[2]  # Far from orthogonal.
    grads.append({**g, "stack": stack})
  return params, grads


def run(optimizer: optax.GradientTransformation, params: Any, grads: list[Any]) -> Any:
  step = jax.jit(optimizer.update)
  state = optimizer.init(params)
  for g in grads:
    updates, state = step(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize("nesterov", (False, True))
def test_adamp_is_the_papers(nesterov: bool) -> None:
  params, grads = problem(0)
  # Small steps: a weight moves little, so the gradients stay orthogonal enough to pass.
  settings = (1e-3, 0.8, 0.95, 1e-8, 0.5, 0.1, 0.1, nesterov)
  ours = run(adamp(*settings), params, grads)
  plain = run(adamp(1e-3, 0.8, 0.95, 1e-8, 0.5, 0.0, 0.1, nesterov), params, grads)
  for i in range(3):
    expected = numpy_adamp(params["stack"][i], [g["stack"][i] for g in grads], *settings)
    np.testing.assert_allclose(ours["stack"][i], expected, rtol=1e-5, atol=1e-7)
    # The first two are projected, the third is not.
    assert np.any(ours["stack"][i] != plain["stack"][i]) == (i < 2)
  for name in ("one", "vector", "scalar"):
    expected = numpy_adamp(params[name], [g[name] for g in grads], *settings)
    np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("nesterov", (False, True))
def test_sgdp_is_the_papers(nesterov: bool) -> None:
  params, grads = problem(1)
  settings: dict[str, Any] = dict(momentum=0.9, dampening=0.2, nesterov=nesterov, eps=1e-8,
                                  delta=0.1, wd_ratio=0.1)
  ours = run(sgdp(1e-3, weight_decay=0.05, **settings), params, grads)
  for name in params:
    for i in range(3) if name == "stack" else (Ellipsis,):
      expected = numpy_sgdp(params[name][i], [g[name][i] for g in grads], 1e-3, wd=0.05,
                            **settings)
      np.testing.assert_allclose(ours[name][i], expected, rtol=1e-5, atol=1e-7)


def test_slows_the_growth_and_the_decay_of_a_scale_invariant_weight() -> None:
  """The paper's Sec. 2 and 3: noise orthogonal to the weight makes it grow, through momentum.

  A step of size lr grows |w|^2 by its own square alone if it is orthogonal to w, and a momentum of
  b1 = 0.9 by (1 + b1) / (1 - b1) = 19 times as much: its older part points outwards.
  """
  rng = np.random.default_rng(2)
  weight = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
  noise = jnp.asarray(rng.normal(size=(50, 16, 8)), jnp.float32)

  def ratio(optimizer: optax.GradientTransformation) -> float:
    """|w|^2 after the last step over that before the first."""
    def step(carry: Any, draw: jax.Array) -> tuple[Any, None]:
      w, state = carry
      # The gradient of a loss that each column's direction decides.
      gradient = draw - w * jnp.sum(draw * w, 0) / jnp.sum(w * w, 0)
      updates, state = optimizer.update(gradient, state, w)
      return (optax.apply_updates(w, updates), state), None
    (last, _), _ = jax.jit(lambda w: jax.lax.scan(step, (w, optimizer.init(w)), noise))(weight)
    return float(jnp.sum(last ** 2) / jnp.sum(weight ** 2))

  growth, slow = ratio(optax.adamw(0.02, weight_decay=0)) - 1, ratio(adamp(0.02)) - 1
  assert 0 < slow < growth / 5
  # Decay apart from growth: AdamP's is a tenth, wd_ratio, of what Adam's is.
  for optimizer, share in ((adamp(1e-6, weight_decay=1e3), 0.1),
                           (optax.adamw(1e-6, weight_decay=1e3), 1)):
    assert ratio(optimizer) == pytest.approx((1 - 1e-6 * 1e3 * share) ** 100, rel=1e-4)
