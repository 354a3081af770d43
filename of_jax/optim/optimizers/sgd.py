"""Stochastic gradient descent with momentum, from Optax, with decoupled weight decay."""

import optax

from of_jax.config import OptimConfig
from of_jax.optim.decay import add_decayed_weights
from of_jax.optim.layout import Layout

FIELDS = {"momentum": 0.9, "nesterov": False}


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds SGD with momentum; only the leaves that the layout names decay.

  m <- g + momentum m; w <- w - lr (m + weight_decay w), Nesterov: g + momentum m for m. The sum
  starts without dampening. Decay does not pass through the momentum, unlike L2 regularisation.
  """
  return optax.chain(
      optax.trace(optim.momentum, nesterov=optim.nesterov) if optim.momentum else optax.identity(),
      add_decayed_weights(layout.weight_decay, layout.decays),
      optax.scale_by_learning_rate(learning_rate))
