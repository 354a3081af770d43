"""Learning-rate schedules: warmup, then constant, linear, cosine or warmup-stable-decay."""

import optax

from of_jax.config import OptimConfig


def learning_rate_schedule(optim: OptimConfig, steps: int) -> optax.Schedule:
  """step (from 0) -> learning rate.

  Linear from 0 to the peak over `warmup_steps`, so that step 0 of a warmup moves nothing, then
  to `final_fraction` of the peak at `steps`. `wsd` stays at the peak until the last
  `decay_fraction` of the steps (Hu et al. 2024, 2404.06395, Sec. 4).
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
  else:
    decay = min(rest, max(1, round(optim.decay_fraction * steps)))
    after = optax.linear_schedule(peak, end, decay, transition_begin=rest - decay)
  if not optim.warmup_steps:
    return after
  warmup = optax.linear_schedule(0.0, peak, optim.warmup_steps)
  return optax.join_schedules([warmup, after], [optim.warmup_steps])
