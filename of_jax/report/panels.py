"""Figures of analyses as data. Enters: measurements, analyses of checkpoints, runs. Leaves: panels
with their axes in words, which matplotlib draws for papers and the page draws to be touched.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.analysis import identity
from of_jax.analysis.runs import Run, read_analysis
from of_jax.config import declared_metrics

# So many metrics are drawn each, whatever they are.
_FEW = 8

Numbers = Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Line:
  """One curve. With `sizes`, from 0 to 1, it is drawn as dots of these sizes."""

  name: str
  x: Numbers
  y: Numbers
  sizes: Numbers | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes.

  Attributes:
    title: what is shown.
    x, y: axis labels, with units.
    definition: of what the y axis shows, a sentence.
    lines: at least one.
    log: whether the y axis is logarithmic.
  """

  title: str
  x: str
  y: str
  definition: str
  lines: tuple[Line, ...]
  log: bool = False


# Metric -> (label with unit, definition, log axis).
_METRICS = {
    "kurtosis": ("kurtosis (1 to width)", "mean over neurons of s^4 over the square of the mean "
                 "of s^2, s a neuron's root mean square over tokens", True),
    "mmr": ("max over median (from 1)", "mean over tokens of the largest magnitude over the median "
            "one", True),
    "input_correlation": ("correlation", "mean off-diagonal of X X^T / width, X scaled to mean "
                          "square 1", False),
    "rms": ("root mean square", "of all entries", True),
}
_WRITES = {"down_projection": "norm of the column of the last down projection",
           "mlp_output": "median magnitude of what the last MLP adds",
           "final_norm_gain": "gain of the final norm"}


def of_measurements(measured: Sequence[Mapping[str, Any]], site: str = "resid_pre"
                    ) -> list[Panel]:
  """Layer by layer where one step was measured, else over steps, a line a layer."""
  panels = []
  found = measured[0]["telemetry"]
  site = site if site in found else next(iter(found), site)
  title = f"{site}, loss {measured[-1]['loss']:.4g} at step {measured[-1]['step']:,}"
  for metric, (label, definition, log) in {**_METRICS, **_others(found.get(site, {}))}.items():
    rows = [m["telemetry"].get(site, {}).get(metric) for m in measured]
    if any(row is None for row in rows):
      continue
    if len(rows) == 1:
      after = measured[0].get("after_intervention")
      lines = [Line("as trained", range(len(rows[0])), _plain(rows[0]))]
      if after is not None:
        changed = after["telemetry"][site][metric]
        lines.append(Line("after the intervention", range(len(changed)), _plain(changed)))
      panels.append(Panel(title, "layer (0 is the first)", label, definition, tuple(lines), log))
    else:
      steps = [float(m["step"]) for m in measured]
      panels.append(Panel(site, "step", label, definition, tuple(
          Line(f"layer {i}", steps, _plain([row[i] for row in rows]))
          for i in range(len(rows[0]))), log))
  return panels


def _others(measured: Mapping[str, Any]) -> dict[str, tuple[str, str, bool]]:
  """As `_METRICS`, of what else is drawn: users' metrics; and all, where few were asked for."""
  registry = declared_metrics.metrics()
  numbers = [name for name, layers in measured.items() if name not in _METRICS
             and not any(isinstance(value, list) for value in layers)]
  found = {}
  for name in numbers:
    declared = registry.get(name.removesuffix(declared_metrics.NO_FIRST))
    if declared is None:
      found[name] = name, "a metric of the user's own", False
    elif len(numbers) <= _FEW:
      twin = ", without position 0" if name != declared.id else ""
      found[name] = f"{name} ({declared.unit})", declared.formula + twin, False
  return found


def of_analysis(analysis: Mapping[str, Any]) -> list[Panel]:
  """The panels of one object of of_jax.analysis.over_training."""
  return _OF[str(analysis["analysis"])](analysis)


def timeline(run: Run) -> list[Panel]:
  """The largest neurons of each layer's input over training; none where the run did not log them.
  """
  found = identity.read(run)
  if found is None:
    return []
  panels = []
  births, shared = found.births(), [math.nan, *found.persistence()]
  for layer, sightings in enumerate(found.layers):
    neurons = sorted({one.neuron for one in sightings})
    lines = tuple(Line(_named(mine[-1], births[layer]), [one.step for one in mine],
                       [neuron] * len(mine), [_finite(one.share) for one in mine])
                  for neuron in neurons
                  for mine in [[one for one in sightings if one.neuron == neuron]])
    below = ("" if math.isnan(shared[layer]) else
             f"; {shared[layer]:.0%} of the last are the layer below's too")
    if lines:
      panels.append(Panel(
          f"layer {layer}{below}", "step", "index of the neuron", "the neurons of largest mean "
          "square over tokens in the stream entering the block; a dot's area is the neuron's share "
          "of the layer's sum of squares; named with the sign of its mean and since when it stays",
          lines))
  return panels


def of_run(run: Run) -> dict[str, list[Panel]]:
  """Title -> panels of everything that a run directory holds beside curves."""
  found = {"The largest neurons over training, stream entering each block": timeline(run)}
  for name in _OF:
    analysis = read_analysis(run, name)
    if analysis is not None:
      found[name.replace("_", " ").capitalize()] = of_analysis(analysis)
  return {title: shown for title, shown in found.items() if shown}


def _named(last: identity.Sighting, births: Mapping[int, int]) -> str:
  """The neuron, the sign of its mean when it was last seen, and since when it is always there."""
  sign = "" if math.isnan(last.mean) else " (+)" if last.mean >= 0 else " (-)"
  return f"neuron {last.neuron}{sign}" + (
      f", since step {births[last.neuron]:,}" if last.neuron in births else "")


def _of_outlier_dimensions(analysis: Mapping[str, Any]) -> list[Panel]:
  steps = [float(entry["step"]) for entry in analysis["steps"]]
  modes = {"full": "all dimensions", "without_outlier_dimensions": "without outlier dimensions",
           "without_random": "without as many random ones, mean of 5",
           "only_outlier_dimensions": "outlier dimensions alone"}

  def curves(key: str) -> tuple[Line, ...]:
    found = []
    for mode, name in modes.items():
      values = [(entry[mode] or {}).get(key) for entry in analysis["steps"]]
      if any(value is not None for value in values):
        found.append(Line(name, steps, values))
    return tuple(found)

  panels = [
      Panel("Outlier dimensions", "step", "number of dimensions", str(analysis["definition"]),
            (Line("of the final representation", steps, [
                len(entry["outlier_dimensions"]) for entry in analysis["steps"]]),
             Line("of the unembedding", steps, [
                 len(entry["unembedding_outlier_dimensions"]) for entry in analysis["steps"]]))),
      Panel("Accuracy", "step", "share of tokens predicted", "the likeliest token is the one that "
            f"comes, over {analysis['contexts']:,} contexts", curves("accuracy")),
      Panel("Surprisal", "step", "nats a token", "mean of -log p of the token that comes",
            curves("surprisal")),
      Panel("Distinct predictions", "step", "number of tokens", "tokens that are the likeliest for "
            "some context", curves("distinct_predictions"), True)]
  writes = [name for name in _WRITES if any(name in entry["boost"] for entry in analysis["steps"])]
  boosted = tuple(Line(_WRITES[name], steps, [
      _median((entry["boost"].get(name) or {}).get("ratios")) for entry in analysis["steps"]])
      for name in writes)
  if any(value is not None for line in boosted for value in line.y):
    panels.append(Panel(
        "What boosts them", "step", "ratio to the median dimension", "median over the outlier "
        "dimensions of each number over its median over all dimensions", boosted, True))
  return panels


def _of_sparsity(analysis: Mapping[str, Any]) -> list[Panel]:
  steps = [float(entry["step"]) for entry in analysis["steps"]]
  last = analysis["steps"][-1]
  layers = range(len(last["layers"]))
  of = {"active_fraction_token": "for a token", "active_fraction_sequence": "in a sequence",
        "active_fraction_batch": f"in {analysis['batch_tokens']:,} tokens"}
  panels = [Panel(
      f"Active units at step {last['step']:,}", "layer (0 is the first)", "share of hidden units",
      "units that are not zero at least once, " + ", ".join(of.values()), tuple(
          Line(name, layers, [row[key] for row in last["layers"]]) for key, name in of.items()))]
  for key, label, definition in (
      ("active_fraction_token", "share of hidden units", "active for a token, mean over tokens"),
      ("dead_fraction", "share of hidden units",
       f"dead: active for none of {analysis['tokens']:,} held-out tokens"),
      ("revived", "share of dead units", "of the units dead at the checkpoint before, those that "
       "are not now")):
    panels.append(Panel(
        {"active_fraction_token": "Active for a token", "dead_fraction": "Dead units",
         "revived": "Revival"}[key], "step", label, definition, tuple(
            Line(f"layer {i}", steps, [entry["layers"][i][key] for entry in analysis["steps"]])
            for i in layers)))
  return panels


def _of_spectra(analysis: Mapping[str, Any]) -> list[Panel]:
  steps = [float(entry["step"]) for entry in analysis["steps"]]
  names = list(analysis["steps"][0]["matrices"])
  panels = []
  for key, title, label, definition in (
      ("top_singular_value", "Top singular values", "singular value", "the largest, s_1"),
      ("stable_rank", "Stable ranks", "stable rank (1 to rank)", "|W|_F^2 / s_1^2")):
    panels.append(Panel(title, "step", label, f"{definition}, mean over layers", tuple(
        Line(name.removeprefix("stacks/").removesuffix("/kernel"), steps, [
            _mean([row[key] for row in entry["matrices"][name]]) for entry in analysis["steps"]])
        for name in names), True))
  return panels


def _of_quantised(analysis: Mapping[str, Any]) -> list[Panel]:
  last = analysis["steps"][-1]
  each = list(last["schemes"].values())
  return [Panel(
      f"step {last['step']:,}, kurtosis {last['kurtosis']:.3g}", "bits of a weight",
      "increase of the loss (nats a token)", analysis["definition"],
      (Line("activations of 8 bits", [float(one["weight_bits"]) for one in each],
            _plain([one["increase"]["mean"] for one in each])),))]


_OF = {"outlier_dimensions": _of_outlier_dimensions, "quantised": _of_quantised,
       "sparsity": _of_sparsity,
       "spectra": _of_spectra}


def _plain(values: Any) -> list[float | None]:
  return [_finite(float(value)) if value is not None else None for value in values]


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _median(values: Sequence[float] | None) -> float | None:
  return statistics.median(values) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
  finite = [value for value in values if value is not None and math.isfinite(value)]
  return statistics.fmean(finite) if finite else None
