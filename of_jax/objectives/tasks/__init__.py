"""Tasks: one a kind of model, a file of its name, chosen by `model.kind`.

A task says what training minimises, what a batch looks like and how much arithmetic a token
takes. What a config must know without jax stands in the file's constants, see
of_jax.config.kinds.Kind.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from of_jax import variants
from of_jax.config import Config
from of_jax.config.kinds import FOLDER, Kind, kind_of
from of_jax.models.functional import Network, named_leaves
from of_jax.objectives.losses import Sums

Batch = Mapping[str, jax.Array]


class Task:
  """Base of the tasks: one kind of model, from a batch's shape to its loss.

  Attributes:
    kind: what the file's constants declare.
  """

  def __init__(self, kind: Kind):
    self.kind = kind

  def objective(self, config: Config, x_BxTxD: jax.Array, table_DxV: jax.Array, batch: Batch,
                z_loss: float) -> tuple[jax.Array, Sums]:
    """The objective through which gradients flow, and its parts, summed over tokens in float32.

    Args:
      config: resolved.
      x_BxTxD: what the unembedding reads.
      table_DxV: the unembedding.
      batch: `targets`, and `weights`, 0 for padding.
      z_loss: weight of log(Z)^2, of tasks with a softmax.

    Returns:
      the objective; and `loss`, `count` and what else is shown of the task, as `accuracy`.
    """
    raise NotImplementedError

  def inputs(self, config: Config, rows: tuple[int, int]) -> jax.ShapeDtypeStruct:
    """Shape and type of `inputs` for [batch, time] tokens or images."""
    raise NotImplementedError

  def flops_per_token(self, config: Config, network: Network) -> int:
    """Floating-point operations of forward and backward pass for one token or image."""
    raise NotImplementedError

  def batch(self, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of everything in a training batch."""
    rows = (config.train.batch_size, config.train.sequence_length)
    found = {"inputs": self.inputs(config, rows), "targets": jax.ShapeDtypeStruct(rows, jnp.int32),
             "weights": jax.ShapeDtypeStruct(rows, jnp.float32)}
    if not config.data.cross_documents:
      found["documents"] = jax.ShapeDtypeStruct(rows, jnp.int32)
    return found


@functools.cache
def task_of(kind: str) -> Task:
  """The task that `model.kind` names."""
  return variants.load_class(FOLDER, kind, Task)(kind_of(kind))


def parameters_multiplied(network: Network, roles: tuple[str, ...]) -> int:
  """How many parameters of these roles there are, all of which stand in matrix products."""
  shapes, named = named_leaves(network.shapes), named_leaves(network.roles)
  return sum(shapes[name].size for name, role in named.items() if role in roles)
