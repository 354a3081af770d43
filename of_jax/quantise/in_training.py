"""The cost of quantisation, measured while a model trains. Enters: parameters, an evaluation batch.
Leaves: its perplexity when quantised, and by how much the loss is higher.

A range is a token's own, so that nothing has to be calibrated; else it is the preset of_jax of
of_jax.quantise. What papers report after Bondarenko et al. is another one, bondarenko. It is a
program of its own: the train step is the same whether this runs or not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from of_jax.config import Config
from of_jax.models.functional import Network
from of_jax.objectives.losses import cross_entropy
from of_jax.quantise.forward import find_bounds, quantised_stream
from of_jax.quantise.scheme import OF_JAX, preset_scheme

# Declared as a family of metrics is, see of_jax.config.declared_metrics.
KIND = "quantised"
SITES = ("final",)
EVERY = 0
METRICS = {
    "quantised_perplexity": (
        "`telemetry.quantised_perplexity_every`",
        "perplexity of the first evaluation batch, of the model after the step, quantised to W8A8 "
        "by the preset `of_jax` (not `bondarenko`, which rounds tables, gains and the final norm's "
        "output too): weights symmetric, a range a tensor by squared error; activations "
        "asymmetric, a range a token; the sites of that preset; the arithmetic in float32, "
        "whatever the compute type", "perplexity", "1 and above",
        "after Bondarenko et al. 2023, 2306.12929"),
    "quantised_loss_increase": (
        "`telemetry.quantised_perplexity_every`",
        "log of quantised_perplexity less the loss of the same batch and model in float32, not "
        "quantised",
        "nats a token", "any", "He et al. 2024, 2405.19279, on quantisation"),
}
SCHEME = preset_scheme(OF_JAX, activation_granularity="token", activation_range="min_max")


def quantised_metrics(network: Network, config: Config) -> Callable[[Any, Any], Any]:
  """(parameters, batch) -> `telemetry` of the metrics above."""

  def run(params: Any, batch: Any) -> dict[str, dict[str, jax.Array]]:
    def loss(x_BxTxD: jax.Array, table_DxV: jax.Array) -> jax.Array:
      parts = cross_entropy(x_BxTxD, table_DxV, batch["targets"], batch["weights"], 0.0,
                            config.model.logit_cap)[1]
      return parts["loss"] / parts["count"]

    bounds = find_bounds(network, params, batch["inputs"], SCHEME)
    quantised = loss(*quantised_stream(network, params, batch, SCHEME, bounds, {}))
    plain = loss(*network.stream(params, batch["inputs"], batch.get("documents"))[:2])
    return {SITES[0]: {"quantised_perplexity": jnp.exp(quantised)[None],
                       "quantised_loss_increase": (quantised - plain)[None]}}

  return run
