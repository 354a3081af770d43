"""Panels of the analyses in of_jax.analysis.registry, one function each, of the analysis's name.

Enters: the object that an analysis left. Leaves: its panels.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.report.panel import Line, Panel, plain

_WRITES = {"down_projection": "norm of the column of the last down projection",
           "mlp_output": "median magnitude of what the last MLP adds",
           "final_norm_gain": "gain of the final norm"}


def outlier_dimensions(analysis: Mapping[str, Any]) -> list[Panel]:
  """Draws how many dimensions are outliers, what the model loses without them, what boosts them."""
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


def sparsity(analysis: Mapping[str, Any]) -> list[Panel]:
  """Draws which hidden units are active at the last checkpoint, and over training."""
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


def spectra(analysis: Mapping[str, Any]) -> list[Panel]:
  """Draws the top singular value and the stable rank of each hidden matrix over training."""
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


def composition(analysis: Mapping[str, Any]) -> list[Panel]:
  """Draws the largest scores of pairs of heads, by component and by whole matrix."""
  steps = [float(entry["step"]) for entry in analysis["steps"]]
  baseline = Line("random matrices", steps, [entry["random"] for entry in analysis["steps"]])
  panels = []
  for group, key, title in (("by_component", "component_score", "largest component"),
                            ("by_matrix", "score", "whole matrices")):
    last = analysis["steps"][-1][group]
    named = f", {last[0]['from']} into {last[0]['to']} ({last[0]['kind']})" if last else ""
    lines = tuple(Line(kind, steps, [
        max((pair[key] for pair in entry[group] if pair["kind"] == kind), default=None)
        for entry in analysis["steps"]]) for kind in ("q", "k", "v"))
    panels.append(Panel(f"{title}{named}", "step", "composition score (0 to 1)",
                        analysis["definition"], (*lines, baseline)))
  return panels


def quantised(analysis: Mapping[str, Any]) -> list[Panel]:
  """Draws what the loss rises by against the bits of the weights, at the last checkpoint."""
  last = analysis["steps"][-1]
  each = list(last["schemes"].values())
  return [Panel(
      f"Quantised at step {last['step']:,}, kurtosis {last['kurtosis']:.3g}", "bits of a weight",
      "increase of the loss (nats a token)", analysis["definition"],
      (Line("activations of 8 bits", [float(one["weight_bits"]) for one in each],
            plain([one["increase"]["mean"] for one in each])),))]


def _median(values: Sequence[float] | None) -> float | None:
  return statistics.median(values) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
  finite = [value for value in values if value is not None and math.isfinite(value)]
  return statistics.fmean(finite) if finite else None
