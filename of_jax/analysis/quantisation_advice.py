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

# Nats a token below which a quantisation is said to cost next to nothing: one per cent of
# perplexity.
NOTABLE = 0.01


def is_notable(found: Mapping[str, Any]) -> bool:
  """Says whether a quantisation costs enough to look for its cause; a loss that is not finite does.
  """
  return not found["increase"]["mean"] < NOTABLE


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


def sentence(found: Mapping[str, Any], advice: Mapping[str, Any] | None) -> str:
  """Says what a quantisation costs, why, and what would lower it."""
  increase = found["increase"]["mean"]
  before, after = found["perplexity"], found["perplexity_quantised"]["mean"]
  cost = (f"{found['label']} costs {increase:.4f} nats a token: perplexity {_shown(before)} "
          f"becomes {_shown(after)}")
  if advice is None:
    return cost + (", next to nothing." if not is_notable(found) else ".")
  better = {flags: value for flags, value in advice["alternatives"].items() if value < after}
  text = (f"{cost}. Of its sites {advice['costliest_site']} costs most: quantised alone it takes "
          f"the first batch from {_shown(advice['plain_perplexity'])} to "
          f"{_shown(advice['site_perplexity'])}.")
  if not better:
    return text + " Neither finer ranges nor a rotation would lower it."
  return text + " Lower: " + ", ".join(
      f"{_shown(value)} with {flags}" for flags, value in
      sorted(better.items(), key=lambda item: item[1])) + "."


def _shown(perplexity: float) -> str:
  return f"{perplexity:,.0f}" if 1000 <= perplexity < 1e15 else f"{perplexity:.4g}"
