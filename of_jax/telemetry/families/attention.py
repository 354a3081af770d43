"""Where attention's mass lies, and how large its logits are."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.family import Family, Statistics

KIND = "attention"
SITES = ()
EVERY = 100
METRICS = {
    "attention_entropy": (
        "full", "-sum_s A_ts log A_ts, mean over queries and heads", "nats", "0 to log T",
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
  """By head, so that heads may be looked at; the metrics are means over heads."""

  def of_weights(self, logits_BxHxTxS: jax.Array, weights_BxHxTxS: jax.Array,
                 first_BxS: jax.Array, counts_BxT: jax.Array) -> Statistics:
    """What some queries of each sequence leave behind; it adds up over queries.

    Args:
      logits_BxHxTxS: what the softmax reads; -inf where attention is not allowed.
      weights_BxHxTxS: what it gives.
      first_BxS: true for the keys at position 0.
      counts_BxT: true for the queries that count.
    """
    counts_Bx1xT = counts_BxT[:, None].astype(jnp.float32)
    entropy_BxHxT = -jnp.sum(jax.scipy.special.xlogy(weights_BxHxTxS, weights_BxHxTxS), -1)
    mass_BxHxT = jnp.einsum("bhts,bs->bht", weights_BxHxTxS, first_BxS.astype(jnp.float32),
                            precision=jax.lax.Precision.HIGHEST)
    counted = counts_BxT[:, None, :, None]
    return {"queries_by_sequence": jnp.sum(counts_BxT, 1, dtype=jnp.float32),
            "mass_by_sequence": jnp.sum(jnp.where(counts_Bx1xT > 0, mass_BxHxT, 0), -1),
            "entropy": jnp.sum(jnp.where(counts_Bx1xT > 0, entropy_BxHxT, 0), (0, 2)),
            "max_logit": jnp.max(jnp.where(counted, logits_BxHxTxS, -jnp.inf), (0, 2, 3))}

  def summed(self, s: Statistics) -> Statistics:
    """Over sequences, once all of their queries are in."""
    queries_B, mass_BxH = s["queries_by_sequence"], s["mass_by_sequence"]
    exists_B = queries_B > 0
    is_sink_BxH = (mass_BxH / queries_B[:, None] > _SINK) & exists_B[:, None]
    # Compared with NaN anything is false, and a rate would look like one.
    sinks_BxH = jnp.where(jnp.isnan(mass_BxH), jnp.nan, is_sink_BxH)
    return {"queries": jnp.sum(queries_B), "sequences": jnp.sum(exists_B, dtype=jnp.float32),
            "entropy": s["entropy"], "mass": jnp.sum(mass_BxH, 0), "sinks": jnp.sum(sinks_BxH, 0),
            "max_logit": s["max_logit"]}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    del no_first
    return {
        "attention_entropy": jnp.mean(s["entropy"], -1) / s["queries"],
        "attention_first_mass": jnp.mean(s["mass"], -1) / s["queries"],
        "attention_sink_rate": jnp.mean(s["sinks"], -1) / s["sequences"],
        "attention_logit_max": jnp.max(s["max_logit"], -1),
    }
