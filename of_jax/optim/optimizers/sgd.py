"""Stochastic gradient descent with momentum (Sutskever et al. 2013, Eq. 1 and 2), from Optax."""

import optax

from of_jax.config import OptimConfig


def from_config(optim: OptimConfig, learning_rate: optax.Schedule,
                decay_mask: optax.Params) -> optax.GradientTransformation:
  """SGD with `momentum` and decoupled `weight_decay`; only leaves true in the mask decay.

  m <- momentum m + g; w <- w - lr (m + weight_decay w).
  """
  return optax.chain(
      optax.trace(optim.momentum) if optim.momentum else optax.identity(),
      optax.add_decayed_weights(optim.weight_decay, decay_mask),
      optax.scale_by_learning_rate(learning_rate))
