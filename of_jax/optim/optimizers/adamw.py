"""AdamW (Loshchilov & Hutter 2019, 1711.05101, Alg. 2), from Optax."""

import optax

from of_jax.config import OptimConfig


def from_config(optim: OptimConfig, learning_rate: optax.Schedule,
                decay_mask: optax.Params) -> optax.GradientTransformation:
  """AdamW with `b1`, `b2`, `eps` and `weight_decay`; only leaves true in the mask decay.

  u = m_hat / (sqrt(v_hat) + eps); w <- w - lr (u + weight_decay w).
  """
  return optax.adamw(learning_rate, b1=optim.b1, b2=optim.b2, eps=optim.eps,
                     weight_decay=optim.weight_decay, mask=decay_mask)
