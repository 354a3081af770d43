"""BatchNorm over tokens: each neuron centred and scaled by statistics of the whole batch."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import Norm, at_least_float32, divide_by_root
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context
from of_jax.models.running import Running, renew

OVER_ANY_AXIS = True


class BatchNorm(Norm):
  """y = gamma (x_j - mean) / std + beta, both over tokens (Ioffe & Szegedy 2015, 1502.03167).

  Mean and biased variance of a neuron over every token of the batch, padding included, on all
  devices; over queries and keys each head of a token counts as a token. Gradients flow through
  both. Training moves the running values by 1 - decay towards the batch's, evaluation divides by
  them and renews nothing. Micro-batches are normed each by its own statistics, and the running
  values are averaged over them: the mean is then the whole batch's, the variance that within
  micro-batches.
  """

  causal_in_training = False

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    self.decay = model.running_decay
    self.scale = parameter(rngs, (width,), constant(1.0), "norm", (axis,))
    self.bias = parameter(rngs, (width,), constant(0.0), "norm", (axis,))
    self.running_mean = parameter(rngs, (width,), constant(0.0), "running", (axis,))
    self.running_variance = parameter(rngs, (width,), constant(1.0), "running", (axis,))

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    y = at_least_float32(x)
    running = {"mean": self.running_mean[...], "variance": self.running_variance[...]}
    if context.training:
      y = self._normed_by_batch(y, running)
    else:
      y = divide_by_root(y - running["mean"], running["variance"], self.eps, self.eps_inside)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)

  def _normed_by_batch(self, x: jax.Array, running: Running) -> jax.Array:
    tokens = tuple(range(x.ndim - 1))
    batch = {"mean": jnp.mean(x, tokens)}
    centred = x - batch["mean"]
    batch["variance"] = jnp.mean(jnp.square(centred), tokens)
    y = divide_by_root(centred, batch["variance"], self.eps, self.eps_inside)
    return renew(y, running, jax.tree.map(
        lambda old, now: self.decay * old + (1 - self.decay) * now, running, batch))
