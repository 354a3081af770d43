"""How often clean runs leave the band of their ladder, and how soon a change is found, counted on
made ladders: four sizes of three seeds, and a run of a fifth.

Curves are log kurtosis at 100 logged steps: a power of size that rises over training, a seed's own
level, and noise that depends on the step before.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from of_jax.scaling import band
from of_jax.scaling.jets import Floats

SIZES, NEW, SEEDS, STEPS = (64.0, 96.0, 128.0, 192.0), 256.0, 3, 100
# Name -> spread of seeds' levels, of noise, its correlation from step to step, degrees of Student's
# t of the noise (infinite: normal).
SCENARIOS: Mapping[str, tuple[float, float, float, float]] = {
    "noise of 5 %, one step tells nothing of the next": (0.0, 0.05, 0.0, np.inf),
    "the same, and seeds differ by 25 %": (0.25, 0.05, 0.0, np.inf),
    "seeds differ by 25 %, noise correlated by 0.9": (0.25, 0.05, 0.9, np.inf),
    "seeds differ by 10 %, heavy tails (t of 5)": (0.1, 0.05, 0.5, 5.0)}
FACTOR, WITHIN = 3.0, 10


def curves(rng: np.random.Generator, sizes: Floats, level: float, noise: float, correlation: float,
           degrees: float) -> Floats:
  """Makes curves, [runs, steps]."""
  drawn = (rng.standard_normal((len(sizes), STEPS)) if np.isinf(degrees)
           else rng.standard_t(degrees, (len(sizes), STEPS)) / np.sqrt(degrees / (degrees - 2)))
  steps = drawn.copy()
  for t in range(1, STEPS):
    steps[:, t] = correlation * steps[:, t - 1] + np.sqrt(1 - correlation ** 2) * drawn[:, t]
  rise = 1 - np.exp(-np.arange(STEPS) / 20)
  logs = (0.8 * np.log(sizes[:, None] / 64) + 1) * rise
  found: Floats = np.exp(logs + level * rng.standard_normal((len(sizes), 1)) + noise * steps)
  return found


def count(samples: int, seed: int = 0, log: Callable[[str], None] = lambda line: None
          ) -> list[dict[str, Any]]:
  """Counts, in each scenario, clean runs that alarm and changed ones that are found in time."""
  log(f"| made ladders | clean runs that alarm | kurtosis times {FACTOR:g}, found within {WITHIN} "
      "logged steps |")
  log("|---|---|---|")
  sizes, rows = np.repeat(SIZES, SEEDS), []
  for number, (name, parts) in enumerate(SCENARIOS.items()):
    rng = np.random.default_rng([seed, number])
    false = found = 0
    for _ in range(samples):
      own = {"steps": list(range(STEPS)),
             **band.of_values(curves(rng, sizes, *parts), sizes, NEW)}
      new = curves(rng, np.array([NEW]), *parts)[0]
      alarms = band.leaving(own, own["steps"], new)
      false += bool(alarms)
      start = int(rng.integers(20, STEPS - WITHIN))
      changed = np.where(np.arange(STEPS) >= start, FACTOR, 1) * new
      found += any(start <= one["step"] < start + WITHIN
                   for one in band.leaving(own, own["steps"], changed))
    rows.append({"scenario": name, "samples": samples, "false_alarms": false / samples,
                 "found": found / samples})
    log(f"| {name} | {100 * false / samples:.1f} % | {100 * found / samples:.1f} % |")
  return rows
