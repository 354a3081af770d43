"""Terms of the loss that are made of every block's output: TWEO's, or a user's own.

Enters: a block's output. Leaves: its number, see of_jax.models.probe.Penalise.
"""

import jax
import jax.numpy as jnp

from of_jax import user_code
from of_jax.config import TrainConfig
from of_jax.errors import UserError
from of_jax.models.probe import Penalise
from of_jax.objectives import tweo


def of(train: TrainConfig) -> tuple[str, float]:
  """Names the term that a config has in metrics.jsonl, and its factor."""
  return ("loss_term", train.loss_term_weight) if train.loss_term else ("tweo", train.tweo_weight)


def penalty(train: TrainConfig, weights_BxT: jax.Array) -> Penalise | None:
  """Maps a block's output to the term's sum over tokens; None where there is no term.

  Args:
    train: resolved.
    weights_BxT: of each token, 0 for padding, as in the cross-entropy.

  Raises:
    UserError: the user's file fails.
  """
  if not train.loss_term:
    return tweo.penalty(train, weights_BxT)
  where = f"config.train.loss_term={train.loss_term}"
  term = user_code.load(train.loss_term, where)

  def of_block(x_BxTxD: jax.Array) -> jax.Array:
    values_BxT = jnp.asarray(term(x_BxTxD.astype(jnp.float32)))
    if values_BxT.shape != x_BxTxD.shape[:2]:
      raise UserError(f"{where}: gives an array of the shape {values_BxT.shape}, not one number a "
                      f"token, {x_BxTxD.shape[:2]}")
    # A token of padding may have any value, infinite too.
    return jnp.sum(jnp.where(weights_BxT > 0, weights_BxT * values_BxT, 0))

  return of_block
