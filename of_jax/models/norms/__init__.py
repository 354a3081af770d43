"""Norms over the last axis: one class a file, chosen by `model.norm`.

A file states the traits of its norm, see of_jax.config.traits.Norm.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax import variants
from of_jax.config import ModelConfig
from of_jax.models.probe import Context


class Norm(nnx.Module):
  """Base of the norms: y = norm(x), statistics in float32, result in the type of x.

  Attributes:
    causal_in_training: whether a token's output depends on that token alone, in training as well.
      Every norm is causal in evaluation.
    eps: added to the mean square, or to its root.
    eps_inside: whether inside the root.
  """

  causal_in_training = True

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    """Args:
      rngs: the stream `params` draws the parameters.
      model: resolved.
      width: neurons of the last axis of x.
      axis: its logical name, see of_jax.models.partition.
      before_attention: whether attention reads the output.
    """
    del rngs, width, axis, before_attention
    self.eps = model.norm_eps
    self.eps_inside = model.norm_eps_placement == "inside"

  def divide_by_rms(self, x: jax.Array) -> jax.Array:
    """Divides by the RMS in float32, sqrt(mean_j x_j^2 + eps) or sqrt(mean_j x_j^2) + eps."""
    x = at_least_float32(x)
    mean_square = jnp.mean(jnp.square(x), -1, keepdims=True)
    return divide_by_root(x, mean_square, self.eps, self.eps_inside)

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    """Norms the last axis, [..., width] -> [..., width]."""
    raise NotImplementedError


def divide_by_root(x: jax.Array, mean_square: jax.Array, eps: float, eps_inside: bool
                   ) -> jax.Array:
  """Divides by a root mean square, sqrt(mean_square + eps) or sqrt(mean_square) + eps."""
  if eps_inside:
    return x * jax.lax.rsqrt(mean_square + eps)
  # The root's gradient at 0 is infinite, and an all-zero token is legitimate.
  zero = mean_square == 0
  root = jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, mean_square)))
  return x / (root + eps)


def at_least_float32(x: jax.Array) -> jax.Array:
  """Converts `x` to float32; float64 stays."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def make_norm(name: str, rngs: nnx.Rngs, model: ModelConfig, width: int | None = None,
              axis: str = "channel", before_attention: bool = False) -> Norm:
  """The norm that a config names, over `width` (default the model's) neurons."""
  norm = variants.load_class("models/norms", name, Norm)
  return norm(rngs, model, width or model.width, axis, before_attention)
