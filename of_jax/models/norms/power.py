"""PowerNorm: divides each neuron by a running RMS over tokens, with a backward pass to match."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import Norm, divide_by_root
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context

OVER_ANY_AXIS = True

Running = dict[str, jax.Array]


class PowerNorm(Norm):
  """y = gamma z + beta, z_j = x_j / sqrt(running mean over tokens of x_j^2) (Shen et al. 2020).

  (2003.07845, as its released code computes it, fairseq/modules/norms/mask_powernorm.py.) Each
  token is first divided by its own RMS (the code's GroupScaling with one group). Then, at step t
  from 1 with s = the batch's mean square of a neuron, phi = `running_square` and a the decay:

    z      = x / sqrt(s + eps) while t <= warmup, x / sqrt(phi + eps) afterwards
    phi   <- a (phi + (s - phi) / t while t < warmup, phi afterwards) + (1 - a) s
    g'     = g - (1 - a) Gamma z, with g = dL/dz and Gamma = `running_gradient`
    dL/dx  = g' / sqrt(s + eps)
    Gamma <- Gamma + mean over tokens of g' z

  As in that code, the backward pass divides by the batch's statistic where the forward pass has
  divided by the running one, and the warmup renews phi twice a step. Evaluation divides by phi
  and renews nothing. The running values are parameters of role `running`: their gradient is
  their new value, see of_jax.train.step. The statistics are over every token of the batch,
  padding included, on all devices; over queries and keys each head of a token counts as a token.
  Micro-batches each have their own s, and the new running values are averaged over them: phi is
  linear in s, so what the micro-batches read alike it renews as one batch would.
  """

  causal_in_training = False

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    self.settings = Settings(self.eps, self.eps_inside, model.power_decay,
                             model.power_warmup_steps)
    self.scale = parameter(rngs, (width,), constant(1.0), "norm", (axis,))
    self.bias = parameter(rngs, (width,), constant(0.0), "norm", (axis,))
    self.running_square = parameter(rngs, (width,), constant(1.0), "running", (axis,))
    self.running_gradient = parameter(rngs, (width,), constant(0.0), "running", (axis,))
    self.running_steps = parameter(rngs, (), constant(0.0), "running", ())

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    y = self.divide_by_rms(x)
    if context.training:
      z = normalise_in_training(self.settings, y, {
          "square": self.running_square[...], "gradient": self.running_gradient[...],
          "steps": self.running_steps[...]})
    else:
      z = divide_by_root(y, self.running_square[...], self.eps, self.eps_inside)
    return (z * self.scale[...] + self.bias[...]).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Constants of PowerNorm in training: eps, the decay a, and the steps of the warmup."""

  eps: float
  eps_inside: bool
  decay: float
  warmup_steps: int


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalise_in_training(settings: Settings, x: jax.Array, running: Running) -> jax.Array:
  """Computes z of PowerNorm's formulas in training, with the backward pass that they have.

  Args:
    settings: see Settings.
    x: [..., width]; statistics are over all axes but the last.
    running: `square` and `gradient`, [width], and `steps`, the number of steps done. Its
      cotangent is its new value.
  """
  return _forward(settings, x, running)[0]


def _forward(settings: Settings, x: jax.Array, running: Running) -> tuple[jax.Array, Any]:
  square = jnp.mean(jnp.square(x), tuple(range(x.ndim - 1)))
  in_warmup = running["steps"] + 1 <= settings.warmup_steps
  z = divide_by_root(x, jnp.where(in_warmup, square, running["square"]), settings.eps,
                     settings.eps_inside)
  return z, (z, square, running)


def _backward(settings: Settings, residuals: Any, gradient: jax.Array
              ) -> tuple[jax.Array, Running]:
  z, square, running = residuals
  step = running["steps"] + 1
  gradient = gradient - (1 - settings.decay) * running["gradient"] * z
  averaged = jnp.where(step < settings.warmup_steps,
                       running["square"] + (square - running["square"]) / step,
                       running["square"])
  new = {"square": settings.decay * averaged + (1 - settings.decay) * square,
         "gradient": running["gradient"] + jnp.mean(gradient * z, tuple(range(z.ndim - 1))),
         "steps": step}
  x_gradient = divide_by_root(gradient, square, settings.eps, settings.eps_inside)
  return x_gradient, jax.tree.map(lambda ours, old: ours.astype(old.dtype), new, running)


normalise_in_training.defvjp(_forward, _backward)
