"""Words of a quantisation: what it costs, why, and what would lower it. Imports no jax.

Enters: what of_jax.analysis.quantisation.quantise and quantisation_advice.advise gave. Leaves: a
sentence.
"""

import math
from collections.abc import Mapping
from typing import Any

# Nats a token below which a quantisation is said to cost next to nothing: one per cent of
# perplexity.
NOTABLE = 0.01


def is_notable(found: Mapping[str, Any]) -> bool:
  """Says whether a quantisation costs enough to look for its cause; a loss that is not finite does.
  """
  increase = found["increase"]["mean"]
  return increase is None or not increase < NOTABLE


def sentence(found: Mapping[str, Any], advice: Mapping[str, Any] | None) -> str:
  """Says what a quantisation costs, why, and what would lower it."""
  increase, before = _number(found["increase"]["mean"]), _number(found["perplexity"])
  after = _number(found["perplexity_quantised"]["mean"])
  cost = (f"{found['label']} costs {increase:.4f} nats a token: perplexity {_shown(before)} "
          f"becomes {_shown(after)}")
  if advice is None:
    return cost + (", next to nothing." if not is_notable(found) else ".")
  better = {flags: value for flags, value in advice["alternatives"].items()
            if math.isfinite(_number(value)) and not value >= after}
  text = (f"{cost}. Of its sites {advice['costliest_site']} costs most: quantised alone it takes "
          f"the first batch from {_shown(advice['plain_perplexity'])} to "
          f"{_shown(advice['site_perplexity'])}.")
  if not better:
    return text + " Neither finer ranges nor a rotation would lower it."
  return text + " Lower: " + ", ".join(
      f"{_shown(value)} with {flags}" for flags, value in
      sorted(better.items(), key=lambda item: item[1])) + "."


def _shown(value: float | None) -> str:
  perplexity = _number(value)
  return f"{perplexity:,.0f}" if 1000 <= perplexity < 1e15 else f"{perplexity:.4g}"


def _number(value: float | None) -> float:
  """A number of a file, in which one that is not finite is None."""
  return math.nan if value is None else value
