"""AdamW (Loshchilov & Hutter 2019, 1711.05101, Alg. 2), as optax.adamw but for decay by leaf."""

import optax

from of_jax.config import OptimConfig
from of_jax.optim.decay import add_decayed_weights
from of_jax.optim.layout import Layout

FIELDS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
IS_ADAM = True


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds AdamW; only the leaves that the layout names decay.

  u = m_hat / (sqrt(v_hat) + eps); w <- w - lr (u + weight_decay w).
  """
  assert optim.b1 is not None and optim.b2 is not None and optim.eps is not None, "resolve first"
  return optax.chain(optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
                     add_decayed_weights(layout.weight_decay, layout.decays),
                     optax.scale_by_learning_rate(learning_rate))
