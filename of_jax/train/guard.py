"""Guard of a step on the device: it says whether the step was finite, and may leave its update out.

The policies are those of `train.on_divergence`, see of_jax.train.divergence. Under `stop` the step
is left as it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from of_jax.train.types import Batch, Metrics, State

STOP, SKIP, ROLLBACK = "stop", "skip", "rollback"
# The metric that says whether a step was not finite, 0 or 1.
NOT_FINITE = "not_finite"

_Step = Callable[[State, Batch, jax.Array], tuple[State, Metrics]]


def guarded(run: _Step, policy: str) -> _Step:
  """Makes of a step one that says whether it was finite and, under `skip`, changes nothing if it
  was not."""
  if policy == STOP:
    return run

  def step(state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    new, metrics = run(state, batch, key)
    numbers = [metrics["loss"], metrics["grad_norm"], *filter(
        _is_real, jax.tree.leaves(new["params"]))]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in numbers]))
    if policy == SKIP:
      def chosen(after: jax.Array, before: jax.Array) -> jax.Array:
        return jnp.where(finite, after, before) if _is_real(after) else after

      new = {"params": jax.tree.map(chosen, new["params"], state["params"]),
             "opt_state": jax.tree.map(chosen, new["opt_state"], state["opt_state"]),
             "step": new["step"]}
    return new, {**metrics, NOT_FINITE: 1 - finite.astype(jnp.float32)}

  return step


def _is_real(x: jax.Array) -> bool:
  return jnp.issubdtype(x.dtype, jnp.floating)
