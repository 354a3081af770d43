"""Advice on a quantisation that costs something. Enters: what quantise.json holds, and the model.
Leaves: which site costs most and what other settings would give, measured, and a sentence.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from of_jax.analysis import quantisation
from of_jax.analysis.evaluation import Batch, Model
from of_jax.errors import UserError
from of_jax.quantise.scheme import Scheme


def advise(model: Model, batches: Sequence[Batch], calibration: Sequence[Batch], scheme: Scheme,
           found: Mapping[str, Any], seed: int,
           log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
  """Measures where a quantisation's cost comes from and what would lower it.

  Args:
    model, batches, calibration, scheme: as of_jax.analysis.quantisation.quantise takes them.
    found: what that gave.
    seed: draws the batches of calibration.
    log: gets a line as each evaluation ends.

  Returns:
    `costliest_site` and `site_perplexity`, of the site that costs most when it alone is quantised,
    on the first batch and beside `plain_perplexity` there; `alternatives`: perplexity by flags.
  """
  first, alone = batches[:1], {}
  for site in found["sites"]:
    one = quantisation.quantise(model, first, calibration,
                                dataclasses.replace(scheme, sites=(site,)), [seed])
    alone[site] = one["perplexity_quantised"]["mean"]
    log(f"{site} alone, first batch: perplexity {alone[site]:.4g} for {one['perplexity']:.4g}")
  # What is not finite is the worst.
  worst = max(alone, key=lambda site: alone[site] if math.isfinite(alone[site]) else math.inf)
  other: dict[str, float] = {}
  for flags, changed in _others(scheme).items():
    try:
      measured = quantisation.quantise(model, batches, calibration, changed, [seed])
    except UserError:
      continue  # Not for this model or this preset.
    other[flags] = measured["perplexity_quantised"]["mean"]
    log(f"{flags}: perplexity {other[flags]:.4g}")
  return {"costliest_site": worst, "site_perplexity": alone[worst],
          "plain_perplexity": one["perplexity"], "alternatives": other}


def _others(scheme: Scheme) -> dict[str, Scheme]:
  """Other settings to try, by the flags that ask for them."""
  finer = dataclasses.replace(scheme, weight_granularity="channel", activation_granularity="token",
                              activation_range="min_max")
  tried = {"--weight_granularity=channel --activation_granularity=token": finer,
           "--hadamard": dataclasses.replace(scheme, hadamard=True)}
  return {flags: other for flags, other in tried.items() if other != scheme}
