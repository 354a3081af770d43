"""Attention: where its mass lies, and how large its logits are."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.family import Family, Statistics, Weigh
from of_jax.telemetry.queries import by_queries

KIND = "attention"
SITES = ()
EVERY = 100
METRICS = {
    "attention_entropy": (
        "full", "-sum_s A_ts log A_ts, mean over queries and heads", "nats",
        "0 to log T; clipped softmax, whose rows need not add up to 1: 0 to T / e; like all of "
        "attention, null for model.attention=linear, which has no weights",
        "He et al. 2024, 2405.19279, App. A; Zhai et al. 2023, 2303.06296"),
    "attention_first_mass": (
        "full", "A_t1, the weight of the key at position 0, mean over queries and heads", "share",
        "0 to 1", "Xiao et al. 2023, 2309.17453"),
    "attention_sink_rate": (
        "full", "share of sequences and heads whose mean over queries of A_t1 is above 0.3",
        "share", "0 to 1", "Gu et al. 2024, 2410.10781 (Sink_1, eps 0.3)"),
    "attention_logit_max": (
        "full", "the largest logit that a softmax reads, behind the cap", "logit", "any",
        "Dehghani et al. 2023, 2302.05442"),
}

_SINK = 0.3


class AttentionStatistics(Family):
  """Statistics by head; the metrics are means over heads."""

  def of_attention(self, q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, weigh: Weigh,
                   first_BxT: jax.Array, counts_BxT: jax.Array) -> Statistics:
    steps, keys = q_BxTxHxK.shape[1], k_BxSxGxK.shape[1]
    first_BxS = jnp.pad(first_BxT, ((0, 0), (keys - steps, 0))).astype(jnp.float32)

    def of_queries(logits_BxHxTxS: jax.Array, weights_BxHxTxS: jax.Array, chosen_BxT: jax.Array
                   ) -> Statistics:
      counted_Bx1xT = chosen_BxT[:, None]
      entropy_BxHxT = -jnp.sum(jax.scipy.special.xlogy(weights_BxHxTxS, weights_BxHxTxS), -1)
      mass_BxHxT = jnp.einsum("bhts,bs->bht", weights_BxHxTxS, first_BxS,
                              precision=jax.lax.Precision.HIGHEST)
      largest_BxHxT = jnp.max(logits_BxHxTxS, -1)
      return {"mass": jnp.sum(jnp.where(counted_Bx1xT, mass_BxHxT, 0), -1),
              "entropy": jnp.sum(jnp.where(counted_Bx1xT, entropy_BxHxT, 0), (0, 2)),
              "max_logit": jnp.max(jnp.where(counted_Bx1xT, largest_BxHxT, -jnp.inf), (0, 2))}

    parts = by_queries(of_queries, q_BxTxHxK, k_BxSxGxK, weigh, counts_BxT)
    mass_BxH = jnp.sum(parts["mass"], 0)
    queries_B = jnp.sum(counts_BxT, 1, dtype=jnp.float32)
    exists_Bx1 = (queries_B > 0)[:, None]
    is_sink_BxH = exists_Bx1 & (mass_BxH / queries_B[:, None] > _SINK)
    return {"queries": jnp.sum(queries_B), "sequences": jnp.sum(exists_Bx1, dtype=jnp.float32),
            "entropy": jnp.sum(parts["entropy"], 0), "mass": jnp.sum(mass_BxH, 0),
            # Nothing is above 0.3 that is NaN, and a rate would look like one.
            "sinks": jnp.sum(jnp.where(jnp.isnan(mass_BxH), jnp.nan, is_sink_BxH), 0),
            "max_logit": jnp.max(parts["max_logit"], 0)}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    del no_first
    return {
        "attention_entropy": jnp.mean(s["entropy"], -1) / s["queries"],
        "attention_first_mass": jnp.mean(s["mass"], -1) / s["queries"],
        "attention_sink_rate": jnp.mean(s["sinks"], -1) / s["sequences"],
        "attention_logit_max": jnp.max(s["max_logit"], -1),
    }
