"""Identity of the largest neurons over training. Enters: a run's metrics with `top_neurons`.
Leaves: of each layer the neurons by step, when each was born, and what layers share.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from of_jax.analysis.runs import SITE, Run
from of_jax.storage.run_directory import METRICS, read_lines


@dataclasses.dataclass(frozen=True)
class Sighting:
  """A neuron among the largest of its layer at a step.

  Attributes:
    share: of the layer's sum of squares.
    mean: its mean over its root mean square: the sign, and how constant it is; NaN where the run
      did not measure that.
  """

  step: int
  neuron: int
  share: float
  mean: float


@dataclasses.dataclass(frozen=True)
class Identity:
  """The largest neurons of one site, layer by layer; `layers[l]` is in order of step and share."""

  layers: tuple[tuple[Sighting, ...], ...]

  def births(self) -> list[dict[int, int]]:
    """Finds layer -> neuron -> the logged step from which on it is always among the largest.

    Only neurons that are there at the last logged step were born in this sense.
    """
    result = []
    for sightings in self.layers:
      by_step: dict[int, set[int]] = {}
      for one in sightings:
        by_step.setdefault(one.step, set()).add(one.neuron)
      born: dict[int, int] = {}
      steps = sorted(by_step, reverse=True)
      # From the last step backwards: who was there at every step seen so far.
      alive = by_step[steps[0]] if steps else set()
      for step in steps:
        alive = alive & by_step[step]
        born.update(dict.fromkeys(alive, step))
      result.append(born)
    return result

  def persistence(self) -> list[float]:
    """Computes of each layer but the first the share of its last top neurons that the layer below
    has too.
    """
    last = [{one.neuron for one in sightings if one.step == sightings[-1].step}
            if sightings else set() for sightings in self.layers]
    return [len(upper & lower) / len(upper) if upper else math.nan
            for lower, upper in zip(last, last[1:])]


def read(run: Run, site: str = SITE, split: str = "train", points: int = 200) -> Identity | None:
  """Reads the identity of the largest neurons as the run logged it; None if it did not.

  At most `points` steps, evenly spread and with the last, are kept.
  """
  rows = []
  for line in read_lines(run.path / METRICS):
    measured = (line.get("telemetry") or {}).get(site, {})
    if line.get("split", "train") == split and measured.get("top_neurons"):
      rows.append((int(line["step"]), measured))
  if not rows:
    return None
  if len(rows) > points:
    rows = [rows[round(i * (len(rows) - 1) / (points - 1))] for i in range(points)]
  depth = max(len(measured["top_neurons"]) for _, measured in rows)
  layers: list[list[Sighting]] = [[] for _ in range(depth)]
  for step, measured in rows:
    for layer, neurons in enumerate(measured["top_neurons"]):
      for rank, neuron in enumerate(neurons or []):
        if neuron is not None:
          layers[layer].append(Sighting(
              step, int(neuron), _number(measured.get("top_neuron_share"), layer, rank),
              _number(measured.get("top_neuron_mean"), layer, rank)))
  return Identity(tuple(map(tuple, layers)))


def _number(values: Sequence[Any] | None, layer: int, rank: int) -> float:
  try:
    value = values[layer][rank] if values is not None else None
  except (IndexError, TypeError):
    value = None
  return math.nan if value is None else float(value)
