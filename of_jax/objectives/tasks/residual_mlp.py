"""A residual MLP that classifies images: He et al. 2024, 2405.19279, App. D."""

import jax
import jax.numpy as jnp

from of_jax.config import Config
from of_jax.models.functional import Network
from of_jax.objectives.losses import Sums, squared_error
from of_jax.objectives.tasks import Batch, Task, parameters_multiplied

INPUTS = "images"
# An image is one token.
SEQUENCE_LENGTH = 1
SITES = ("resid_pre", "mlp_in", "mlp_hidden", "mlp_out", "final")
HAS_ATTENTION = False
# Two square matrices a layer.
HIDDEN_RATIO = 1
READS = {
    "model": ("kind", "norm", "norm_eps", "norm_eps_placement", "width", "depth", "mlp",
              "mlp_width", "final_norm", "beta", "beta_mlp", "beta_trainable", "beta_per_channel",
              "dropout", "embedding_dropout", "init_std", "scan_layers", "remat", "compute_dtype",
              "linear_bias", "mlp_norm", "leaky_relu_slope", "dyt_alpha", "power_decay",
              "power_warmup_steps", "running_decay", "unified_window", "unified_warmup_steps",
              "unified_filter"),
    "data": ("corpus", "cache_dir", "validation_fraction", "eval_sequences", "whitening",
             "input_size", "classes")}
LOSS = "squared error"
STARTS_AT_ZERO = True
IS_QUANTISABLE = False


class ImageRegression(Task):
  """Squared error of the outputs against one-hot targets, and the share of images told right."""

  def objective(self, config: Config, x_BxTxD: jax.Array, table_DxV: jax.Array, batch: Batch,
                z_loss: float) -> tuple[jax.Array, Sums]:
    del config, z_loss
    return squared_error(x_BxTxD, table_DxV, batch["targets"], batch["weights"])

  def inputs(self, config: Config, rows: tuple[int, int]) -> jax.ShapeDtypeStruct:
    assert config.data.input_size is not None, "resolve the config first"
    return jax.ShapeDtypeStruct((*rows, config.data.input_size), jnp.float32)

  def flops_per_token(self, config: Config, network: Network) -> int:
    """6 x parameters in matrix products, the map from the pixels included."""
    del config
    return 6 * parameters_multiplied(network, ("hidden", "unembedding", "embedding"))
