"""TWEO's loss term, which keeps the entries of every block's output near the threshold or below.

Enters: a block's output, under the scan over blocks. Leaves: one number a block, through which
gradients flow: nothing as large as an activation is kept for it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from of_jax.config import TrainConfig

# Added to the threshold, the paper's.
_EPS = 1e-6


def penalty(train: TrainConfig, weights_BxT: jax.Array) -> Callable[[jax.Array], jax.Array] | None:
  """Maps a block's output A to the sum over tokens of weight x mean_j (|A_j| / (tau + eps))^p.

  With the mean over blocks, the division by the number of tokens and the factor lambda it is
  TWEO's lambda (1 / L) sum_l E[(|A_l| / (tau + eps))^p] (2511.23225), where lambda is
  `train.tweo_weight`, tau `train.tweo_threshold` and p `train.tweo_power`. In float32.

  Args:
    train: resolved.
    weights_BxT: of each token, 0 for padding, as in the cross-entropy.

  Returns:
    None where the weight is 0: then there is no such term.
  """
  if not train.tweo_weight:
    return None
  scale, power = 1 / (train.tweo_threshold + _EPS), train.tweo_power

  def of_block(x_BxTxD: jax.Array) -> jax.Array:
    ratio_BxTxD = jnp.abs(x_BxTxD.astype(jnp.float32)) * scale
    # A whole power is a few products, and the paper's 4 is one.
    powers_BxTxD = ratio_BxTxD ** (int(power) if power == int(power) else power)
    return jnp.sum(weights_BxT * jnp.mean(powers_BxTxD, -1))

  return of_block
