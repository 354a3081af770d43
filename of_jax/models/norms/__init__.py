"""Norms over the last axis: one class a file, chosen by `model.norm`."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax import variants
from of_jax.config import ModelConfig
from of_jax.models.probe import Context


class Norm(nnx.Module):
  """Base of the norms: y = norm(x), statistics in float32, result in the type of x.

  Attributes:
    eps: added to the mean square, or to its root.
    eps_inside: whether inside the root.
  """

  def __init__(self, rngs: nnx.Rngs, width: int, axis: str, eps: float, eps_inside: bool):
    del rngs, width, axis
    self.eps = eps
    self.eps_inside = eps_inside

  def divide_by_rms(self, x: jax.Array) -> jax.Array:
    """x / sqrt(mean_j x_j^2 + eps), or x / (sqrt(mean_j x_j^2) + eps), in float32."""
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), -1, keepdims=True)
    if self.eps_inside:
      return x * jax.lax.rsqrt(mean_square + self.eps)
    # The root's gradient at 0 is infinite, and an all-zero token is legitimate.
    zero = mean_square == 0
    root = jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, mean_square)))
    return x / (root + self.eps)

  def __call__(self, x: jax.Array, context: Context | None = None) -> jax.Array:
    raise NotImplementedError


def make_norm(name: str, rngs: nnx.Rngs, model: ModelConfig, width: int | None = None,
              axis: str = "channel") -> Norm:
  """The norm that a config names, over `width` (default the model's) neurons."""
  norm = variants.load_class("models/norms", name, Norm)
  return norm(rngs, width or model.width, axis, model.norm_eps,
              model.norm_eps_placement == "inside")
