"""Activity of the MLPs' hidden units on a fixed set of tokens (Wild & Anderson 2024,
2407.07848).

Enters: a model and batches. Leaves: per layer the share of units that are active for a token, at
least once in a sequence, at least once in a batch; and which are dead. Over checkpoints: which die
and which revive. The paper's exact formulas were not found; these are stated in `activity`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from of_jax.analysis.evaluation import Batch, Model, measured, observed
from of_jax.models.probe import Observer, Statistics

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SITE = "mlp_hidden"
# The paper's batch.
BATCH_TOKENS = 8192
PERCENTILES = (5, 25, 50, 75, 95)


@dataclasses.dataclass(frozen=True)
class _Counts:
  """Counts of units that are not zero: of each token, and of each unit in each sequence."""

  def __call__(self, weights_BxT: jax.Array) -> Observer:
    def observe(site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None
                ) -> Statistics | None:
      del first_BxT
      if site != SITE:
        return None
      active_BxTxF = (x_BxTxD != 0) & (weights_BxT > 0)[..., None]
      return {"units": jnp.sum(active_BxTxF, -1, dtype=jnp.int32),
              "tokens": jnp.sum(active_BxTxF, 1, dtype=jnp.int32)}

    return observe


@dataclasses.dataclass(frozen=True)
class Activity:
  """Activity of one model's hidden units on one set of tokens; L layers, F units a layer.

  Attributes:
    token_LxN: the share of units that are active, for each token.
    sequence_LxS: the share that is active at least once, for each sequence.
    batch_LxB: the same for each batch of `batch_tokens` tokens or a little more; a rest that is
      smaller is left out, unless it is all there is.
    frequency_LxF: of each unit the share of tokens on which it is active.
  """

  token_LxN: Floats
  sequence_LxS: Floats
  batch_LxB: Floats
  frequency_LxF: Floats
  batch_tokens: int

  @property
  def dead_LxF(self) -> Bools:
    """Whether no token of the whole set activates a unit."""
    dead: Bools = self.frequency_LxF == 0
    return dead

  def by_layer(self) -> list[dict[str, Any]]:
    """Summarizes layer by layer: means, and percentiles over tokens, sequences and units."""
    rows = []
    for layer in range(len(self.token_LxN)):
      row: dict[str, Any] = {}
      for name, values in (("token", self.token_LxN), ("sequence", self.sequence_LxS),
                           ("batch", self.batch_LxB)):
        row[f"active_fraction_{name}"] = float(values[layer].mean())
      row["dead_fraction"] = float(self.dead_LxF[layer].mean())
      for name, values in (("token", self.token_LxN), ("sequence", self.sequence_LxS),
                           ("unit_frequency", self.frequency_LxF)):
        row[f"{name}_percentiles"] = {
            str(p): float(v) for p, v in zip(PERCENTILES, np.percentile(values[layer],
                                                                        PERCENTILES))}
      rows.append(row)
    return rows


def activity(model: Model, batches: Iterable[Batch], batch_tokens: int = BATCH_TOKENS) -> Activity:
  """Measures how active the hidden units are; active means not zero.

  With a_tf = 1 where unit f is not zero for token t: a token's share is mean_f a_tf, a sequence's
  mean_f max_{t in sequence} a_tf, a batch's mean_f max_{t in batch} a_tf.
  """
  tokens: list[Floats] = []
  sequences: list[Floats] = []
  shares: list[Floats] = []
  total: Any = 0
  seen_LxF: Any = False
  count = in_batch = 0
  size = 0
  for batch, kept in observed(model, batches, _Counts()):
    weights_BxT = measured(batch) > 0
    rows_B = weights_BxT.any(1)
    units_LxBxT = kept[SITE]["units"]
    counts_LxBxF = kept[SITE]["tokens"][:, rows_B]
    size = counts_LxBxF.shape[-1]
    tokens.append(units_LxBxT[:, weights_BxT] / size)
    sequences.append((counts_LxBxF > 0).mean(-1))
    total = total + counts_LxBxF.sum(1, dtype=np.int64)
    count += int(weights_BxT.sum())
    for row, row_tokens in enumerate(weights_BxT[rows_B].sum(1)):
      seen_LxF = seen_LxF | (counts_LxBxF[:, row] > 0)
      in_batch += int(row_tokens)
      if in_batch >= batch_tokens:
        shares.append(seen_LxF.mean(-1))
        seen_LxF, in_batch = False, 0
  if not shares:
    shares.append(seen_LxF.mean(-1))
  return Activity(np.concatenate(tokens, 1), np.concatenate(sequences, 1), np.stack(shares, 1),
                  total / count, min(batch_tokens, count))


def turnover(dead: Sequence[Bools]) -> list[list[dict[str, float]]]:
  """Computes what became of units between consecutive checkpoints.

  Args:
    dead: of each checkpoint, in order, true where a unit is dead, [layers, units].

  Returns:
    for each checkpoint and layer: `died`, the share of units dead now and not before; `revived`,
    the share of those dead before that are not now (0 where none was); `stays_dead`, the share
    of units that are dead now and at every later checkpoint.
  """
  result = []
  for i, now in enumerate(dead):
    before = dead[i - 1] if i else np.zeros_like(now)
    forever = np.logical_and.reduce([*dead[i:]])
    result.append([{
        "died": float((now[layer] & ~before[layer]).mean()) if i else 0.0,
        "revived": float((before[layer] & ~now[layer]).sum() / max(1, before[layer].sum())),
        "stays_dead": float(forever[layer].mean())} for layer in range(len(now))])
  return result
