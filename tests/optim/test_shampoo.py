"""Shampoo against NumPy in float64: both powers, sums and averages, graftings, one side."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.optim.optimizers.shampoo import scale_by_shampoo, shampoo

CASES: dict[str, dict[str, Any]] = {
    # Gupta et al. 2018, Alg. 1, but for momentum: sums, refreshed every step.
    "original": {"power": -0.25, "shampoo_beta": 1.0, "b1": 0.0, "eps": 1e-4, "grafting": "none",
                 "precondition_frequency": 1},
    "he": {"power": -0.5, "shampoo_beta": 0.8, "b1": 0.9, "eps": 1e-3, "grafting": "none",
           "precondition_frequency": 3},
    "sgd norm": {"power": -0.5, "shampoo_beta": 0.8, "b1": 0.9, "eps": 1e-3, "grafting": "sgd",
                 "precondition_frequency": 3},
    "adam norm": {"power": -0.25, "shampoo_beta": None, "b1": 0.9, "eps": 1e-3,
                  "grafting": "adam", "precondition_frequency": 2},
}
# Name -> shape; the tall one's rows are above max_precond_dim = 6.
SHAPES = {"stack": (2, 4, 5), "tall": (8, 3)}


def in_numpy(given: list[np.ndarray], power: float, shampoo_beta: float | None, b1: float,
             eps: float, grafting: str, precondition_frequency: int, b2: float) -> np.ndarray:
  """The last update of one matrix."""
  beta = b2 if shampoo_beta is None else shampoo_beta
  rows, columns = given[0].shape
  left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
  m, v = np.zeros((rows, columns)), np.zeros((rows, columns))
  weight = 1.0 if beta == 1 else 1 - beta
  for t, g in enumerate(given, 1):
    left, right = beta * left + weight * g @ g.T, beta * right + weight * g.T @ g
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g ** 2
    if (t - 1) % precondition_frequency == 0:
      total = 1.0 if beta == 1 else 1 - beta ** t
      one_sided = rows > 6
      roots = []
      for factor in (left, right):
        values, vectors = np.linalg.eigh(factor / total + eps * np.eye(len(factor)))
        roots.append(vectors @ np.diag(values ** (2 * power if one_sided else power)) @ vectors.T)
      if one_sided:
        roots[0] = np.eye(rows)
  averaged = m / (1 - b1 ** t)
  u = roots[0] @ averaged @ roots[1]
  adam = averaged / (np.sqrt(v / (1 - b2 ** t)) + eps)
  if grafting != "none":
    u *= np.linalg.norm(averaged if grafting == "sgd" else adam) / np.linalg.norm(u)
  return u


@pytest.mark.parametrize("case", CASES)
def test_against_numpy(case: str) -> None:
  """Five calls, so that the last root is not always the last factor's."""
  rng = np.random.default_rng(0)
  given = [{name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(5)]
  with jax.enable_x64(True):
    optimizer = scale_by_shampoo(b2=0.97, max_precond_dim=6, **CASES[case])
    state, update = optimizer.init(given[0]), jax.jit(optimizer.update)
    for gradients in given:
      updates, state = update(gradients, state)
  for i in range(2):
    expected = in_numpy([g["stack"][i] for g in given], **CASES[case], b2=0.97)
    np.testing.assert_allclose(updates["stack"][i], expected, rtol=1e-8, atol=1e-10)
  expected = in_numpy([g["tall"] for g in given], **CASES[case], b2=0.97)
  np.testing.assert_allclose(updates["tall"], expected, rtol=1e-8, atol=1e-10)


def test_first_update_of_the_original_is_orthogonal() -> None:
  """(G G^T)^-1/4 G (G^T G)^-1/4 = U V^T for G = U S V^T: every singular value becomes 1."""
  g = jnp.asarray(np.random.default_rng(1).standard_normal((4, 4)), jnp.float32)
  optimizer = scale_by_shampoo(b1=0.0, shampoo_beta=1.0, eps=0.0, power=-0.25, grafting="none")
  updates, _ = jax.jit(optimizer.update)(g, optimizer.init(g))
  left, _, right = np.linalg.svd(g)
  np.testing.assert_allclose(updates, left @ right, atol=1e-4)


def test_step_decays_and_descends() -> None:
  """w - lr (U + decay w), and a matrix of zero gradients only decays."""
  optimizer = shampoo(0.1, weight_decay=0.5)
  params = {"w": jnp.ones((3, 3)), "still": jnp.ones((3, 3))}
  gradients = {"w": jnp.eye(3), "still": jnp.zeros((3, 3))}
  updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
  np.testing.assert_allclose(updates["still"], -0.1 * 0.5 * np.ones((3, 3)), rtol=1e-6)
  # U is a multiple of G = I, with the norm of Adam's first update, which is I too.
  np.testing.assert_allclose(updates["w"], -0.1 * (np.eye(3) + 0.5), rtol=1e-5)


def test_unknown_grafting_is_refused() -> None:
  with pytest.raises(ValueError, match="grafting='lion': not none, sgd or adam"):
    scale_by_shampoo(grafting="lion")  # type: ignore[arg-type]
