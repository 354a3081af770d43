"""Running statistics of modules: how a forward pass renews what no gradient moves."""

import jax
import jax.numpy as jnp

# Parameters of the role `running`, by name.
Running = dict[str, jax.Array]


@jax.custom_vjp
def renew(y: jax.Array, running: Running, new: Running) -> jax.Array:
  """Returns y, in whose backward pass each running statistic has its new value for a gradient.

  That is what the train step expects of them, see of_jax.models.parameter. The backward pass runs
  once a micro-batch, so they are renewed once, whatever is recomputed. No gradient reaches `new`.
  """
  del running, new
  return y


def _forward(y: jax.Array, running: Running, new: Running
             ) -> tuple[jax.Array, tuple[Running, Running]]:
  return y, (running, new)


def _backward(kept: tuple[Running, Running], g: jax.Array) -> tuple[jax.Array, Running, Running]:
  running, new = kept
  return (g, jax.tree.map(lambda value, old: value.astype(old.dtype), new, running),
          jax.tree.map(jnp.zeros_like, new))


renew.defvjp(_forward, _backward)
