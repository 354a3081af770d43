"""AdamW (Loshchilov & Hutter 2019, 1711.05101, Alg. 2), from Optax."""

import optax

from of_jax.config import OptimConfig
from of_jax.optim.layout import Layout

FIELDS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
IS_ADAM = True


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds AdamW; only the leaves that the layout names decay.

  u = m_hat / (sqrt(v_hat) + eps); w <- w - lr (u + weight_decay w).
  """
  return optax.adamw(learning_rate, b1=optim.b1, b2=optim.b2, eps=optim.eps,
                     weight_decay=layout.weight_decay, mask=layout.decays)
