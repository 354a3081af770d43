"""Cross-entropy that never holds the logits of a whole batch; squared error for images.

Enters: the stream before the unembedding, and the unembedding. Leaves: sums over tokens. Logits
exist for a few positions at a time, and training takes the gradient in the same pass: on CPU a
third of a small model's step went into writing and reading [batch, time, vocabulary] arrays.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from of_jax.models import partition
from of_jax.xla import placement
from of_jax.xla.reductions import weighted_sum

# Logits that one device holds at once: on CPU few enough for a cache, enough for a full product;
# elsewhere 256 MiB, since each chunk reads the table and its gradient, at 1.2B 0.8 GB, once more.
_LOGITS_AT_ONCE = 2 ** 21
_LOGITS_ON_ACCELERATORS = 2 ** 26

Sums = dict[str, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(x_BxTxD: jax.Array, table_DxV: jax.Array, targets_BxT: jax.Array,
                  weights_BxT: jax.Array, z_loss: float, cap: float | None = None
                  ) -> tuple[jax.Array, Sums]:
  """Cross-entropy with its z-loss, and its parts, summed over tokens in float32.

  Args:
    x_BxTxD: input of the unembedding.
    table_DxV: the unembedding; logits are x W, computed in the type of x, kept in float32.
    targets_BxT: int32, the token to predict.
    weights_BxT: weight of each token, 0 for padding. No gradient flows to it.
    z_loss: weight of log(Z)^2, Z the softmax's denominator (Chowdhery et al. 2022, Sec. 5).
    cap: c, logits become c tanh(logits / c) (Gemma 2).

  Returns:
    sum of weight x (cross-entropy + z_loss log(Z)^2), through which gradients flow; and `loss`,
    the sum of weight x cross-entropy in nats, and `count`, the sum of weights.
  """
  (objective, parts), _ = _scan(
      x_BxTxD, table_DxV, targets_BxT, weights_BxT, z_loss, cap, gradient=False)
  return objective, parts


def _scan(x_BxTxD: jax.Array, table_DxV: jax.Array, targets_BxT: jax.Array,
          weights_BxT: jax.Array, z_loss: float, cap: float | None, gradient: bool
          ) -> tuple[Any, Any]:
  """Computes totals, and with `gradient` the objective's gradient in x and the table."""
  batch, time, _ = x_BxTxD.shape
  vocab = table_DxV.shape[1]
  # Of float64, which configs do not offer, float64.
  wide = jnp.promote_types(x_BxTxD.dtype, jnp.float32)
  chunks = _number_of_chunks(batch * vocab, time)
  # Gathered here, and the parts of its gradient added up behind the loop: within, each chunk would
  # move the whole table between devices.
  table = partition.constrain_vocabulary(table_DxV.astype(x_BxTxD.dtype))
  ways = placement.ways(placement.BATCH_AXES)
  ways = ways if batch % ways == 0 else 1

  def split(array: jax.Array) -> jax.Array:
    # Over time, because the batch is what devices share.
    return array.reshape(batch, chunks, time // chunks, *array.shape[2:]).swapaxes(0, 1)

  def add_chunk(carry: Any, chunk: Any) -> tuple[Any, Any]:
    totals, table_gradient = carry
    x, targets, weights = chunk
    logits = jnp.tensordot(x, table, 1, preferred_element_type=wide)
    if cap is not None:
      logits = cap * jnp.tanh(logits / cap)
    largest = jnp.max(logits, -1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    z = jnp.sum(exponentials, -1, keepdims=True)
    log_z = (largest + jnp.log(z))[..., 0]
    loss = log_z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    objective = weighted_sum(weights, loss + z_loss * jnp.square(log_z))
    parts = {"loss": weighted_sum(weights, loss), "count": jnp.sum(weights)}
    totals = jax.tree.map(jnp.add, totals, (objective, parts))
    if not gradient:
      return (totals, table_gradient), None
    # d/dlogits of log Z is the softmax, of its square 2 log Z times that.
    scale = (1 + 2 * z_loss * log_z)[..., None] / z
    is_target = jnp.arange(vocab) == targets[..., None]
    slope = weights[..., None] * (exponentials * scale - is_target)
    if cap is not None:
      slope *= 1 - jnp.square(logits / cap)  # c tanh(z / c)' = 1 - tanh(z / c)^2
    slope = slope.astype(x.dtype)
    table_gradient += _table_gradient(x, slope, ways, wide)
    return (totals, table_gradient), jnp.tensordot(slope, table.T, 1)

  zero = jnp.zeros((), wide)
  start = ((zero, {"loss": zero, "count": zero}),
           _zeros(table_DxV.shape, ways, wide) if gradient else zero)
  (totals, table_gradient), x_gradient = jax.lax.scan(
      add_chunk, start, (split(x_BxTxD), split(targets_BxT), split(weights_BxT)))
  if not gradient:
    return totals, None
  if ways > 1:
    table_gradient = jnp.sum(table_gradient, 0)
  return totals, (x_gradient.swapaxes(0, 1).reshape(x_BxTxD.shape),
                  table_gradient.astype(table_DxV.dtype))


def _table_gradient(x: jax.Array, slope: jax.Array, ways: int, wide: Any) -> jax.Array:
  """x^T slope of a chunk, shaped as `_zeros`."""
  if ways == 1:
    return jnp.einsum("btd,btv->dv", x, slope, preferred_element_type=wide)
  by_group = [rows.reshape(ways, -1, *rows.shape[1:]) for rows in (x, slope)]
  return partition.constrain_vocabulary(jnp.einsum(
      "sbtd,sbtv->sdv", *by_group, preferred_element_type=wide))


def _zeros(shape: tuple[int, ...], ways: int, dtype: Any) -> jax.Array:
  """Zeros to add the table's gradient to: a part for each group of devices with its own rows."""
  if ways == 1:
    return jnp.zeros(shape, dtype)
  return partition.constrain_vocabulary(jnp.zeros((ways, *shape), dtype))


def _number_of_chunks(logits_a_position: int, time: int) -> int:
  """Fewest equal chunks of the time axis that keep a device's logits within the limit."""
  limit = _LOGITS_AT_ONCE if placement.platform() == "cpu" else _LOGITS_ON_ACCELERATORS
  wanted = logits_a_position / placement.devices() * time / limit
  return next(n for n in range(1, time + 1) if time % n == 0 and (n >= wanted or n == time))


def _forward(x_BxTxD: jax.Array, table_DxV: jax.Array, targets_BxT: jax.Array,
             weights_BxT: jax.Array, z_loss: float, cap: float | None) -> tuple[Any, Any]:
  return _scan(x_BxTxD, table_DxV, targets_BxT, weights_BxT, z_loss, cap, gradient=True)


def _backward(z_loss: float, cap: float | None, gradients: Any, cotangents: Any) -> tuple[Any, ...]:
  del z_loss, cap
  x_gradient, table_gradient = gradients
  scale = cotangents[0]
  return (x_gradient * scale.astype(x_gradient.dtype), table_gradient * scale, None, None)


cross_entropy.defvjp(_forward, _backward)


def squared_error(x_BxTxD: jax.Array, table_DxC: jax.Array, targets_BxT: jax.Array,
                  weights_BxT: jax.Array) -> tuple[jax.Array, Sums]:
  """Mean over classes of (x W - one-hot target)^2, summed over images in float32.

  He et al. 2024 (2405.19279, App. D) train by MSE on one-hot targets. That the mean is over the
  classes too is not stated there, but fits their SGD rate of 3: on one image, a step on the output
  matrix moves an output by rate x 2 / classes x mean_j(x_j^2) x its error, 0.6 of the error at
  mean square 1. Summed over ten classes it would be 6 times the error, past the 2 that converge.

  Returns:
    sum of weight x loss, through which gradients flow; and the sums of weight x `loss`, of weight
    x `accuracy` (1 where the largest output is the target's) and of the weights, `count`.
  """
  outputs_BxTxC = jnp.tensordot(x_BxTxD, table_DxC.astype(x_BxTxD.dtype), 1,
                                preferred_element_type=jnp.float32)
  wanted_BxTxC = jax.nn.one_hot(targets_BxT, table_DxC.shape[1])
  loss_BxT = jnp.mean(jnp.square(outputs_BxTxC - wanted_BxTxC), -1)
  right_BxT = jnp.argmax(outputs_BxTxC, -1) == targets_BxT
  total = jnp.sum(weights_BxT * loss_BxT)
  return total, {"loss": total, "accuracy": jnp.sum(weights_BxT * right_BxT),
                 "count": jnp.sum(weights_BxT)}
