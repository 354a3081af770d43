"""The softmax itself."""

import jax

from of_jax.models.softmaxes import Softmax


class PlainSoftmax(Softmax):
  """w = softmax(z), z = q k^T / sqrt(K) (Vaswani et al. 2017, eq. 1)."""

  is_plain = True

  def __call__(self, logits_BxHxTxS: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits_BxHxTxS, -1)
