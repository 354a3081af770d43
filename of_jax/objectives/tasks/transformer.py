"""A decoder-only transformer that predicts the next token."""

import jax
import jax.numpy as jnp

from of_jax.config import Config
from of_jax.models.functional import Network
from of_jax.objectives.losses import Sums, cross_entropy
from of_jax.objectives.tasks import Batch, Task, parameters_multiplied

INPUTS = "tokens"
SEQUENCE_LENGTH = None
SITES = ("resid_pre", "resid_mid", "attn_in", "attn_out", "mlp_in", "mlp_hidden", "mlp_out",
         "attn_q", "attn_k", "final")
HAS_ATTENTION = True
HIDDEN_RATIO = 4
# Every field.
READS = None
LOSS = "cross-entropy"
STARTS_AT_ZERO = False
IS_QUANTISABLE = True


class NextToken(Task):
  """Cross-entropy of each token given those before it, in nats."""

  def objective(self, config: Config, x_BxTxD: jax.Array, table_DxV: jax.Array, batch: Batch,
                z_loss: float) -> tuple[jax.Array, Sums]:
    found: tuple[jax.Array, Sums] = cross_entropy(
        x_BxTxD, table_DxV, batch["targets"], batch["weights"], z_loss, config.model.logit_cap)
    return found

  def inputs(self, config: Config, rows: tuple[int, int]) -> jax.ShapeDtypeStruct:
    del config
    return jax.ShapeDtypeStruct(rows, jnp.int32)

  def flops_per_token(self, config: Config, network: Network) -> int:
    """6 x (parameters in matrix products) + 12 x depth x heads x head size x sequence length.

    Attention is counted as if it were not causal (Chowdhery et al. 2022, 2204.02311, App. B),
    linear attention by its chunks and its state in place of the sequence. The unembedding counts,
    an embedding lookup does not.
    """
    model = config.model
    matrices = parameters_multiplied(network, ("hidden", "unembedding"))
    if model.tied_embeddings:
      matrices += config.data.vocab_size * model.width
    assert model.head_dim is not None, "resolve the config first"
    seen = config.train.sequence_length
    if model.attention == "linear" and seen > model.linear_chunk:
      state = model.head_dim * (1 if model.linear_positions == "none" else 2)
      seen = model.linear_chunk + state
    return 6 * matrices + 12 * model.depth * model.heads * model.head_dim * seen
