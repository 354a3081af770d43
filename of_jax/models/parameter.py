"""Creation of parameters: every one states its role and its logical axes."""

import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.xla import placement


class Initializer(Protocol):
  """Function (key, shape, dtype) -> array, as in jax.nn.initializers."""

  def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    ...


def normal(std: float) -> Initializer:
  """Initializer that draws from the Gaussian of mean 0 and standard deviation `std`."""
  return jax.nn.initializers.normal(std)


def uniform(bound: float) -> Initializer:
  """Initializer that draws evenly between -`bound` and `bound`."""

  def draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return draw


def attention_std(model: ModelConfig) -> float | None:
  """Standard deviation of attention's matrices; None where they are drawn evenly, see Linear."""
  return model.init_std if model.attention_init == "normal" else None


def constant(value: float) -> Initializer:
  """Initializer that sets every entry to `value`."""
  return jax.nn.initializers.constant(value)


def parameter(rngs: nnx.Rngs, shape: tuple[int, ...], init: Initializer,
              role: str, axes: tuple[str, ...]) -> nnx.Param[jax.Array]:
  """Creates a float32 parameter.

  Args:
    rngs: the stream `params` is used.
    shape: one size an axis.
    init: draws the value.
    role: one of of_jax.config.roles.ROLES; decides decay and whatever else goes by role. A
      `running` one is a statistic that training renews: its gradient must be its new value, which
      a jax.custom_vjp gives (see of_jax.models.norms.power), and nothing else is done to it.
    axes: logical names of the axes, see of_jax.models.partition.
  """
  assert len(shape) == len(axes), (shape, axes)
  return nnx.Param(init(rngs.params(), shape, jnp.float32), role=role, axes=axes)


class Linear(nnx.Module):
  """Linear map y = x W (+ b), which contracts the last axes of x with the first of W.

  The kernel is (in, out), either of which may be several axes, as [in, heads, head_dim].
  Products are in the type of x; the parameters are float32. The kernel is drawn from N(0, std^2)
  and the bias is 0; without a `std` both are uniform within 1 / sqrt(inputs of an output), as in
  torch.nn.Linear.
  """

  def __init__(self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...],
               std: float | None, inputs: int = 1, bias: bool = False, role: str = "hidden"):
    self.inputs = inputs
    evenly = uniform(math.prod(shape[:inputs]) ** -0.5)
    self.kernel = parameter(rngs, shape, evenly if std is None else normal(std), role, axes)
    if bias:
      # A vector of the width is a small one: split, it would cost a gather a use.
      own = tuple("channel" if axis == "embed" else axis for axis in axes[inputs:])
      offsets = evenly if std is None else constant(0.0)
      self.bias = parameter(rngs, shape[inputs:], offsets, "bias", own)
    self.has_bias = bias

  def weight(self) -> jax.Array:
    """Matrix that x is multiplied with, float32, in the kernel's shape."""
    return self.kernel[...]

  def rescale_init(self, factor: float) -> None:
    """Multiplies the freshly drawn weight."""
    self.kernel[...] = self.kernel[...] * factor

  def __call__(self, x: jax.Array) -> jax.Array:
    y = product(x, self.weight().astype(x.dtype), self.inputs)
    return y + self.bias[...].astype(x.dtype) if self.has_bias else y


def product(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
  """Multiplies x by a kernel: the last `inputs` axes of x are contracted with the kernel's first.

  JAX computes the kernel's gradient as the transpose of g^T x. XLA's CPU compiler copies the first
  factor of such a product into another order: better x, where it is the smaller one. Other
  platforms' compilers choose for themselves.
  """
  rows, columns = math.prod(kernel.shape[:inputs]), math.prod(kernel.shape[inputs:])
  is_x_smaller = rows < columns and placement.platform() == "cpu"
  return (_product if is_x_smaller else jnp.tensordot)(x, kernel, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
  return jnp.tensordot(x, kernel, inputs)


def _forward(x: jax.Array, kernel: jax.Array, inputs: int
             ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return jnp.tensordot(x, kernel, inputs), (x, kernel)


def _backward(inputs: int, kept: tuple[jax.Array, jax.Array], g: jax.Array
              ) -> tuple[jax.Array, jax.Array]:
  x, kernel = kept
  tokens = tuple(range(x.ndim - inputs))
  columns = tuple(range(inputs, kernel.ndim))
  return (jnp.tensordot(g, kernel, (tuple(range(len(tokens), g.ndim)), columns)),
          jnp.tensordot(x, g, (tokens, tokens)))


_product.defvjp(_forward, _backward)
