"""sigma-Reparam: linear maps whose spectral norm is a parameter."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.models.parameter import Linear, parameter

ITERATIONS = 64


class SigmaReparamLinear(Linear):
  """W_hat = gamma W / sigma(W), sigma the largest singular value (Zhai et al. 2023, 2303.06296).

  gamma starts at sigma of the drawn kernel, as in the authors' code, so that nothing is changed
  at init. They keep the singular vectors' estimates from step to step and refine them once a
  step; here they are computed anew in each, from a fixed start, see `spectral_norm`.
  """

  def __init__(self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...],
               std: float | None, inputs: int = 1, bias: bool = False, role: str = "hidden"):
    super().__init__(rngs, shape, axes, std, inputs, bias, role)
    self.gamma = parameter(rngs, (), lambda key, shape, dtype: self._sigma(), "gain", ())

  def _sigma(self) -> jax.Array:
    kernel = self.kernel[...]
    return spectral_norm(kernel.reshape(math.prod(kernel.shape[:self.inputs]), -1))

  def weight(self) -> jax.Array:
    return self.kernel[...] * (self.gamma[...] / self._sigma())

  def rescale_init(self, factor: float) -> None:
    super().rescale_init(factor)
    self.gamma[...] = self.gamma[...] * factor


def spectral_norm(matrix_IxO: jax.Array, iterations: int = ITERATIONS) -> jax.Array:
  """Estimates the spectral norm, u^T W v, by power iterations that no gradient enters.

  The estimate is never above the largest singular value. Of Gaussian matrices, whose singular
  values have no gap and so are the hardest, the worst of 300 lay 2 % below (sides 32 to 512, 64
  iterations; 16 iterations: 9 %). It is exact to rounding where the largest is twice the second.
  """
  matrix = jax.lax.stop_gradient(matrix_IxO)
  start = jax.random.normal(jax.random.key(0), matrix.shape[1:], jnp.float32).astype(matrix.dtype)

  def iterate(_: int, v_O: jax.Array) -> jax.Array:
    return _unit(matrix.T @ _unit(matrix @ v_O))

  v_O = jax.lax.fori_loop(0, iterations, iterate, _unit(start))
  sigma: jax.Array = _unit(matrix @ v_O) @ (matrix_IxO @ v_O)
  return sigma


def _unit(x: jax.Array) -> jax.Array:
  # A matrix of zeros has no direction: the estimate is then 0 rather than undefined.
  return x / jnp.maximum(jnp.linalg.norm(x), 1e-30)
