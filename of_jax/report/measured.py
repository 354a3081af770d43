"""Measurements and quantisations of models, loaded or trained, as parts of the page. Enters: runs
whose directories hold measure.json or quantise.json. Leaves: HTML.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.analysis import quantisation_words
from of_jax.analysis.runs import Run, read_measurements
from of_jax.report import metrics, terminal
from of_jax.report.tables import QUANTISE, table, text
from of_jax.storage.run_directory import read_object

# Columns of the table of sites, where they were measured.
_SHOWN = ("kurtosis", "mmr", "max_abs", "rms")


def section(runs: Mapping[str, Run]) -> str:
  """Writes what measure and quantise left of each run: a table by site, a sentence of the cost."""
  parts = []
  for run in runs.values():
    own = [*_quantised(run), *_sites(run)]
    if own:
      parts += [f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else "", *own]
  if not parts:
    return ""
  heading = "Measured and quantised" if any(map(quantisations, runs.values())) else "Measured"
  return f"<h2>{heading}</h2>" + "\n".join(parts)


def quantisations(run: Run) -> list[Mapping[str, Any]]:
  """Reads what quantise left in a run's directory; none of several runs compared, or nothing."""
  if not (run.path / QUANTISE).is_file():
    return []
  found = read_object(run.path / QUANTISE)
  return [one for one in (found.get("runs") or [found]) if isinstance(one, dict)
          and isinstance(one.get("increase"), dict) and {"perplexity", "perplexity_quantised",
                                                         "label"} <= {*one}]


def verdicts(run: Run) -> list[str]:
  """Says what quantisation costs a run, a sentence for each that was measured."""
  return [quantisation_words.sentence(one, one.get("advice")) for one in quantisations(run)]


def _quantised(run: Run) -> list[str]:
  parts = [f"<p>{text(sentence)}</p>" for sentence in verdicts(run)]
  for one in quantisations(run):
    rows = [[text(site), _cell(cost["all_but"]), _cell(cost["only"])]
            for site, cost in (one.get("by_site") or {}).items()]
    if rows:
      parts.append(table(["site", "perplexity, all but it quantised", "it alone quantised"], rows,
                         "sortable"))
  return parts


def _sites(run: Run) -> list[str]:
  measured = read_measurements(run)
  if not measured:
    return []
  last = measured[-1]
  shown = [name for name in _SHOWN if any(_numbers(found.get(name))
                                          for found in last["telemetry"].values())]
  rows = []
  for site, found in last["telemetry"].items():
    cells = [_largest(found.get(name)) for name in shown]
    if any(value is not None for value, _ in cells):
      rows.append([text(site), *(_cell(value, at) for value, at in cells)])
  if not rows:
    return []
  what = ", ".join(f"{metrics.STREAM[name].name if name in metrics.STREAM else name}: "
                   f"{metrics.as_html(metrics.formula(name))}" for name in shown)
  return [table(["site", *shown], rows, "sortable"),
          '<p class="note">The largest layer of each site, and below it which that is (0 is the '
          f"first), over {last.get('num_tokens', 0):,} tokens at step {last['step']:,}. {what}."
          "</p>"]


def _largest(layers: Any) -> tuple[float | None, str]:
  """The largest number of a list a layer, and its layer; None where there is none."""
  found = _numbers(layers)
  if not found:
    return None, ""
  layer = max(found, key=lambda i: found[i])
  return found[layer], f"layer {layer}" if len(layers) > 1 else ""


def _numbers(layers: Any) -> dict[int, float]:
  if not isinstance(layers, Sequence) or isinstance(layers, str):
    return {}
  return {i: float(v) for i, v in enumerate(layers)
          if isinstance(v, (int, float)) and math.isfinite(v)}


def _cell(value: float | None, below: str = "") -> str:
  if value is None:
    return '<td data-value="">-</td>'
  return (f'<td data-value="{value:.8g}">{text(terminal.show(value))}'
          f"{f'<small>{text(below)}</small>' if below else ''}</td>")
