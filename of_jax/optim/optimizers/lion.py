"""Lion (Chen et al. 2023, 2302.06675, Alg. 2), as optax.lion but for decay by leaf."""

import optax

from of_jax.config import OptimConfig
from of_jax.optim.decay import add_decayed_weights
from of_jax.optim.layout import Layout

FIELDS = {"b1": 0.9, "b2": 0.99}


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds Lion; only the leaves that the layout names decay.

  u = sign(b1 m + (1 - b1) g); w <- w - lr (u + weight_decay w); m <- b2 m + (1 - b2) g.
  """
  assert optim.b1 is not None and optim.b2 is not None, "resolve the config first"
  return optax.chain(optax.scale_by_lion(optim.b1, optim.b2),
                     add_decayed_weights(layout.weight_decay, layout.decays),
                     optax.scale_by_learning_rate(learning_rate))
