"""Unified Normalization: divides by a geometric mean of the last steps' mean squares."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models.norms import Norm, at_least_float32, divide_by_root
from of_jax.models.parameter import constant, parameter
from of_jax.models.probe import Context
from of_jax.models.running import Running

OVER_ANY_AXIS = True
# Gradients are scaled by the forward pass's root over the running one, within these; and by 1
# up to this step.
_RATIOS, _UNSCALED_STEPS = (1 / 5, 5), 1000


class UnifiedNorm(Norm):
  """y = gamma x_j / sqrt(s_j) + beta, s the last M batches' geometric mean of mean squares (2022).

  (Yang et al., 2208.01313, as its released code computes it.) At step t from 1, v being the
  batch's mean square of a neuron, into slot t mod M of a window of M:

    s       = v up to step M, before `warmup` and where the batch is skipped; else the window's
              geometric mean
    r       = 1 up to step max(1000, warmup) and where skipped; else sqrt(s) / sqrt(running_square)
              within [1/5, 5], of the value before this step
    running_square <- decay running_square + (1 - decay) s
    g       = gamma r dL/dy;  a = mean over tokens of g z, into slot t mod M of a second window
    m       = a where s = v, else that window's mean;  Gamma <- decay Gamma + (1 - decay) m
    dL/dx   = (g - Gamma z) / sqrt(s), m for Gamma where skipped;  dL/dgamma = sum dL/dy r z

  With `model.unified_filter` a batch from step `warmup` on is skipped if in any neuron the
  window's arithmetic mean exceeds the geometric one by more than M times the variance of all
  roots in the window before; its slots then take running_square and Gamma.

  All of this state is of role `running`: the backward pass gives its new value for a gradient, so
  recomputation renews it once, restarts carry it with t, and meshes see one batch. Statistics are
  over every token, padding included, on all devices. Micro-batches each take this step from the
  same state, and what they leave is averaged: the windows' mean squares are then those of the
  whole batch, geometric means and whether a batch is skipped are each micro-batch's own.
  Evaluation divides by running_square and renews nothing.
  """

  causal_in_training = False

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig, width: int, axis: str,
               before_attention: bool):
    super().__init__(rngs, model, width, axis, before_attention)
    self.settings = Settings(self.eps, self.eps_inside, model.running_decay, model.unified_window,
                             model.unified_warmup_steps, model.unified_filter)

    def running(value: float, *front: int) -> nnx.Param[jax.Array]:
      axes = ("window",) * len(front) + (axis,)
      return parameter(rngs, (*front, width), constant(value), "running", axes)

    self.scale = parameter(rngs, (width,), constant(1.0), "norm", (axis,))
    self.bias = parameter(rngs, (width,), constant(0.0), "norm", (axis,))
    self.running_square, self.running_gradient = running(1.0), running(0.0)
    self.running_squares = running(0.0, model.unified_window)
    self.running_gradients = running(0.0, model.unified_window)
    self.running_steps = parameter(rngs, (), constant(0.0), "running", ())

  def __call__(self, x: jax.Array, context: Context) -> jax.Array:
    y, scale = at_least_float32(x), self.scale[...]
    if context.training:
      y = scaled_in_training(self.settings, y, scale, {
          "square": self.running_square[...], "gradient": self.running_gradient[...],
          "squares": self.running_squares[...], "gradients": self.running_gradients[...],
          "steps": self.running_steps[...]})
    else:
      y = scale * divide_by_root(y, self.running_square[...], self.eps, self.eps_inside)
    return (y + self.bias[...]).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Constants in training: eps, the decay, the window M, the warmup, whether batches are skipped.
  """

  eps: float
  eps_inside: bool
  decay: float
  window: int
  warmup_steps: int
  skips: bool

  def divide(self, x: jax.Array, square: jax.Array) -> jax.Array:
    """Divides by the root of a mean square."""
    return divide_by_root(x, square, self.eps, self.eps_inside)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled_in_training(settings: Settings, x: jax.Array, scale: jax.Array, running: Running
                       ) -> jax.Array:
  """Computes gamma z of the formulas in training, with the backward pass that they have.

  Args:
    settings: see Settings.
    x: [..., width]; statistics are over all axes but the last.
    scale: gamma, [width].
    running: `square` and `gradient`, [width], `squares` and `gradients`, [window, width], and
      `steps`, the number of steps done. Its cotangent is its new value.
  """
  return _forward(settings, x, scale, running)[0]


def _forward(settings: Settings, x: jax.Array, scale: jax.Array, running: Running
             ) -> tuple[jax.Array, Any]:
  step = running["steps"] + 1
  square = jnp.mean(jnp.square(x), tuple(range(x.ndim - 1)))
  squares = _into_slot(running["squares"], step, square)
  skip = jnp.zeros((), bool)
  if settings.skips:
    excess = jnp.mean(squares, 0) - _geometric_mean(squares)
    spread = jnp.var(jnp.sqrt(running["squares"]), ddof=1)
    skip = (step >= settings.warmup_steps) & jnp.any(excess > spread * settings.window)
    squares = jnp.where(skip, _into_slot(squares, step, running["square"]), squares)
  is_early = (step <= settings.window) | (step < settings.warmup_steps)
  used = jnp.where(is_early | skip, square, _geometric_mean(squares))
  ratio = jnp.clip(settings.divide(1 / settings.divide(jnp.ones_like(used), used),
                                   running["square"]), *_RATIOS)
  ratio = jnp.where((step <= max(_UNSCALED_STEPS, settings.warmup_steps)) | skip, 1, ratio)
  z = settings.divide(x, used)
  return scale * z, (z, scale, used, squares, ratio, is_early, skip, running)


def _backward(settings: Settings, residuals: Any, gradient: jax.Array
              ) -> tuple[jax.Array, jax.Array, Running]:
  z, scale, used, squares, ratio, is_early, skip, running = residuals
  step, decay = running["steps"] + 1, settings.decay
  tokens = tuple(range(z.ndim - 1))
  g = gradient * scale * ratio
  along = jnp.mean(g * z, tokens)
  gradients = _into_slot(running["gradients"], step,
                         jnp.where(skip, running["gradient"], along))
  mean = jnp.where(is_early | skip, along, jnp.mean(gradients, 0))
  new = {"square": decay * running["square"] + (1 - decay) * used, "squares": squares,
         "gradient": decay * running["gradient"] + (1 - decay) * mean, "gradients": gradients,
         "steps": step}
  x_gradient = settings.divide(g - jnp.where(skip, mean, new["gradient"]) * z, used)
  scale_gradient = jnp.sum(gradient * ratio * z, tokens).astype(scale.dtype)
  return x_gradient, scale_gradient, jax.tree.map(
      lambda ours, old: ours.astype(old.dtype), new, running)


scaled_in_training.defvjp(_forward, _backward)


def _into_slot(window: jax.Array, step: jax.Array, value: jax.Array) -> jax.Array:
  """Puts a value into slot step mod M of [M, width]."""
  slot = jnp.arange(len(window)) == step % len(window)
  return jnp.where(slot[:, None], value, window)


def _geometric_mean(window: jax.Array) -> jax.Array:
  return jnp.exp(jnp.mean(jnp.log(window), 0))
