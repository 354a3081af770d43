"""Learning-rate schedules: a warmup, then constant, linear, cosine, wsd or inverse square root."""

import jax
import jax.numpy as jnp
import optax

from of_jax.config import OptimConfig


def learning_rate_schedule(optim: OptimConfig, steps: int) -> optax.Schedule:
  """Makes the schedule, a function of the step (from 0) that gives the learning rate.

  It is linear from 0 to the peak over `warmup_steps`, so that step 0 of a warmup moves nothing,
  then to `final_fraction` of the peak at `steps`. `wsd` stays at the peak until the last
  `decay_steps` (Hu et al. 2024, 2404.06395, Sec. 4), over which it falls linearly, or as
  1 - sqrt(x) of the share x that is past (Haegele et al. 2024, 2405.18392, Sec. 4).
  `inverse_sqrt` is peak sqrt(w / step), w the warmup or 1 (Vaswani et al. 2017, eq. 3), and knows
  no end.
  """
  assert optim.warmup_steps is not None, "resolve the config first"
  peak, end = optim.learning_rate, optim.learning_rate * optim.final_fraction
  rest = max(1, steps - optim.warmup_steps)
  if optim.schedule == "constant":
    after = optax.constant_schedule(peak)
  elif optim.schedule == "linear":
    after = optax.linear_schedule(peak, end, rest)
  elif optim.schedule == "cosine":
    after = optax.cosine_decay_schedule(peak, rest, alpha=optim.final_fraction)
  elif optim.schedule == "inverse_sqrt":
    after = _inverse_sqrt(peak, max(1, optim.warmup_steps))
  else:
    assert optim.decay_steps is not None, "resolve the config first"
    decay = min(rest, optim.decay_steps)
    fall = optax.linear_schedule if optim.decay_shape == "linear" else _one_minus_sqrt
    after = optax.join_schedules([optax.constant_schedule(peak), fall(peak, end, decay)],
                                 [rest - decay])
  if not optim.warmup_steps:
    return after
  warmup = optax.linear_schedule(0.0, peak, optim.warmup_steps)
  return optax.join_schedules([warmup, after], [optim.warmup_steps])


def _inverse_sqrt(peak: float, warmup: int) -> optax.Schedule:
  # Counts from the end of the warmup, where the rate is the peak.
  def rate(step: jax.Array) -> jax.Array:
    return peak * jnp.sqrt(warmup / (jnp.maximum(step, 0) + warmup))
  return rate


def _one_minus_sqrt(peak: float, end: float, steps: int) -> optax.Schedule:
  def rate(step: jax.Array) -> jax.Array:
    return end + (peak - end) * (1 - jnp.sqrt(jnp.clip(step / steps, 0, 1)))
  return rate
