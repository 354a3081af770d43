"""Figures of analyses as data. Enters: measurements, analyses of checkpoints, runs. Leaves: panels
with their axes in words, which matplotlib draws for papers and the page draws to be touched.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from of_jax.analysis import identity, registry
from of_jax.analysis.runs import SITE, Run, read_analysis, read_measurements
from of_jax.config import declared_metrics
from of_jax.report import analysis_panels, metrics
from of_jax.report.panel import Line, Panel, finite, plain
from of_jax.storage import run_directory

# So many metrics are drawn each, whatever they are.
_FEW = 8

# Metrics of the stream that are drawn wherever they were measured.
_ALWAYS = ("kurtosis", "mmr", "input_correlation", "rms")


def of_measurements(measured: Sequence[Mapping[str, Any]], site: str = SITE
                    ) -> list[Panel]:
  """Draws a site's metrics: by layer where one step was measured, else over steps, a line a layer.

  Args:
    measured: objects of measure.json, one a step.
    site: what is drawn; where it was not measured, the first that was.
  """
  panels = []
  # As JSON has them: an array of a list a layer is a list of lists then.
  measured = [run_directory.plain(one) for one in measured]
  found = measured[0]["telemetry"]
  site = site if site in found else next(iter(found), site)
  step = f", step {measured[-1]['step']:,}"
  for metric, (label, definition, log) in _shown(found.get(site, {})).items():
    title = f"{_name(metric)} at {site}{step if len(measured) == 1 else ''}"
    rows = [m["telemetry"].get(site, {}).get(metric) for m in measured]
    if not all(_is_a_number_a_layer(row) for row in rows):
      continue
    if len(rows) == 1:
      after = measured[0].get("after_intervention")
      lines = [Line("as trained", range(len(rows[0])), plain(rows[0]))]
      if after is not None:
        changed = after["telemetry"][site][metric]
        lines.append(Line("after the intervention", range(len(changed)), plain(changed)))
      panels.append(Panel(title, "layer (0 is the first)", label, definition, tuple(lines), log))
    else:
      steps = [float(m["step"]) for m in measured]
      panels.append(Panel(title, "step", label, definition, tuple(
          Line(f"layer {i}", steps, plain([row[i] for row in rows]))
          for i in range(len(rows[0]))), log))
  return panels


def _shown(measured: Mapping[str, Any]) -> dict[str, tuple[str, str, bool]]:
  """Metric -> label, definition, whether the axis is logarithmic, of what is drawn.

  Beside those that always are, users' metrics; and all, where few were asked for.
  """
  found = {name: (metrics.STREAM[name].axis, metrics.formula(name), metrics.STREAM[name].log)
           for name in _ALWAYS}
  numbers = [name for name, layers in measured.items()
             if name not in _ALWAYS and _is_a_number_a_layer(layers)]
  for name in numbers:
    declared = declared_metrics.metrics().get(metrics.base(name))
    if declared is None:
      found[name] = name, "a metric of the user's own", False
    elif len(numbers) <= _FEW:
      found[name] = f"{name} ({declared.unit})", metrics.formula(name), False
  return found


def _name(metric: str) -> str:
  name = metrics.STREAM[metric].name if metric in metrics.STREAM else metric
  return name[:1].upper() + name[1:] if metric in metrics.STREAM else name


def _is_a_number_a_layer(layers: Any) -> bool:
  """Says whether a metric can be drawn; of some, as `top_neurons`, a layer has several numbers."""
  return isinstance(layers, list) and not any(isinstance(value, list) for value in layers)


def of_analysis(analysis: Mapping[str, Any]) -> list[Panel]:
  """Draws what an analysis of of_jax.analysis.registry left.

  Raises:
    LookupError: of_jax.report.analysis_panels has no function of the analysis's name.
  """
  name = str(analysis["analysis"])
  draw: Callable[[Mapping[str, Any]], list[Panel]] | None = getattr(analysis_panels, name, None)
  if name not in registry.ANALYSES or draw is None:
    raise LookupError(f"of_jax/report/analysis_panels.py has no function {name}, or "
                      "of_jax/analysis/registry.py no row of that name")
  return draw(analysis)


def timeline(run: Run) -> list[Panel]:
  """Draws the largest neurons of each layer's input over training, a panel a layer.

  Empty where the run did not log them.
  """
  found = identity.read(run)
  if found is None:
    return []
  panels = []
  births, shared = found.births(), [math.nan, *found.persistence()]
  for layer, sightings in enumerate(found.layers):
    neurons = sorted({one.neuron for one in sightings})
    lines = tuple(Line(_named(mine[-1], births[layer]), [one.step for one in mine],
                       [neuron] * len(mine), [finite(one.share) for one in mine])
                  for neuron in neurons
                  for mine in [[one for one in sightings if one.neuron == neuron]])
    below = ("" if math.isnan(shared[layer]) else
             f"; {shared[layer]:.0%} of the last are the layer below's too")
    if lines:
      panels.append(Panel(
          f"Largest neurons, layer {layer}{below}", "step", "index of the neuron",
          "the neurons of largest mean square over tokens in the stream entering the block; a "
          "dot's area is the neuron's share of the layer's sum of squares; named with the sign of "
          "its mean and since when it stays", lines))
  return panels


def of_run(run: Run) -> dict[str, list[Panel]]:
  """Draws everything that a run directory holds beside curves: title -> panels."""
  measured = read_measurements(run)
  found = {"Measured, stream entering each block": of_measurements(measured) if measured else [],
           "The largest neurons over training, stream entering each block": timeline(run)}
  for name, row in registry.ANALYSES.items():
    analysis = read_analysis(run, name)
    if analysis is not None:
      found[row.title] = of_analysis(analysis)
  return {title: shown for title, shown in found.items() if shown}


def _named(last: identity.Sighting, births: Mapping[int, int]) -> str:
  """The neuron, the sign of its mean when it was last seen, and since when it is always there."""
  sign = "" if math.isnan(last.mean) else " (+)" if last.mean >= 0 else " (-)"
  return f"neuron {last.neuron}{sign}" + (
      f", since step {births[last.neuron]:,}" if last.neuron in births else "")
