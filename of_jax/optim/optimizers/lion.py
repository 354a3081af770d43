"""Lion (Chen et al. 2023, 2302.06675, Alg. 2), from Optax."""

import optax

from of_jax.config import OptimConfig
from of_jax.optim.layout import Layout

FIELDS = {"b1": 0.9, "b2": 0.99}


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds Lion; only the leaves that the layout names decay.

  u = sign(b1 m + (1 - b1) g); w <- w - lr (u + weight_decay w); m <- b2 m + (1 - b2) g.
  """
  return optax.lion(learning_rate, b1=optim.b1, b2=optim.b2, weight_decay=layout.weight_decay,
                    mask=layout.decays)
