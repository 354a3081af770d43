"""Tables of the page as HTML. Enters: runs. Leaves: a row a setting, a row a run, what differs."""

import html
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from of_jax.analysis.runs import Run, loss_unit, read_analysis
from of_jax.claims import alarms
from of_jax.claims.study_record import flatten, varying
from of_jax.report import metrics, series, terminal
from of_jax.storage.run_directory import read_object

QUANTISED, QUANTISE = "quantised", "quantise.json"


def text(value: Any) -> str:
  """Escapes a value for HTML."""
  return html.escape(str(value))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
  """Writes a table; rows are HTML already, each cell whole, and the header is not."""
  head = "".join(f'<th scope="col">{_breakable(h)}</th>' for h in header)
  body = "".join("<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row)
                 + "</tr>" for row in rows)
  return ('<div class="scroll" tabindex="0" role="region" aria-label="table">'
          f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
          "</div>")


def _breakable(value: str) -> str:
  """A dotted field that may go on in the next line, so that a column is no wider than needed."""
  return text(value).replace(".", ".<wbr>").replace("_", "_<wbr>")


def named(item: series.Series, name: str) -> str:
  """Writes a name behind the dot of a run's colour."""
  return f'<span class="dot" style="background:{item.colour}"></span>{text(name)}'


def quantised_losses(run: Run) -> dict[str, float]:
  """Reads by how many nats quantisation raises a run's loss, by its scheme, where it is known."""
  found = {}
  analysis = read_analysis(run, QUANTISED)
  if analysis is not None:
    found = {name: one["increase"]["mean"] for name, one in
             analysis["steps"][-1]["schemes"].items()}
  if (run.path / QUANTISE).is_file():
    one = read_object(run.path / QUANTISE)
    if isinstance(one.get("increase"), dict) and one.get("label") not in found:
      found[str(one.get("label"))] = one["increase"].get("mean", math.nan)
  return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def last_kurtosis(run: Run) -> float:
  """Finds the largest kurtosis over layers at the last logged step; NaN where there is none."""
  values = run.measured("kurtosis").values
  return float(np.max(values[-1])) if values.size else math.nan


_Column = tuple[str, Callable[[Run], float], Callable[[float], str]]


def _columns(runs: Mapping[str, Run]) -> list[_Column]:
  """Lists what the tables show of each run: head, what is read, how it is written."""
  found: list[_Column] = [("final loss", lambda run: run.final_loss, terminal.show_loss)]
  if any(run.reads_images for run in runs.values()):
    found.append(("accuracy", lambda run: run.final_accuracy, terminal.show_accuracy))
  found += [("kurtosis at the end", last_kurtosis, terminal.show),
            ("peak kurtosis", lambda run: run.peak("kurtosis"), terminal.show),
            ("peak MMR", lambda run: run.peak("mmr"), terminal.show)]
  schemes = dict.fromkeys(name for run in runs.values() for name in quantised_losses(run))

  def reader(scheme: str) -> Callable[[Run], float]:
    return lambda run: quantised_losses(run).get(scheme, math.nan)

  found += [(f"loss added by {name}", reader(name), _signed) for name in schemes]
  return found


def _signed(value: float) -> str:
  return f"{value:+.4f}" if math.isfinite(value) else "-"


def settings(runs: Mapping[str, Run]) -> str:
  """Writes a row a setting: mean and range over its seeds; and below, folded, a row a run."""
  runs = {name: run for name, run in runs.items() if not run.is_loaded}
  if not runs:
    return ""
  arranged, columns = series.arrange(runs), _columns(runs)
  grouped: dict[str, list[series.Series]] = {}
  for item in arranged:
    grouped.setdefault(item.setting, []).append(item)
  rows = []
  for setting, items in grouped.items():
    rows.append([named(items[0], setting), _cell([float(len(items))], lambda v: f"{v:.0f}"),
                 *(_cell([read(item.run) for item in items], show) for _, read, show in columns),
                 text(_state([item.run for item in items]))])
  if len(grouped) == len(runs):
    return ("<h2>Runs</h2>" + _every(arranged, columns) + _note(runs))
  header = ["setting", "runs", *(column[0] for column in columns), "status"]
  return ("<h2>Settings</h2>" + table(header, rows, "sortable")
          + '<p class="note">A row a setting: the mean over its runs, which are trained alike but '
          "for their seed, and below it the smallest and the largest. Click a head to sort.</p>"
          f"<details><summary>Every run ({len(runs)})</summary>{_every(arranged, columns)}"
          "</details>" + _note(runs))


def _every(arranged: Sequence[series.Series], columns: Sequence[_Column]) -> str:
  rows = []
  for item in arranged:
    run, where = item.run, item.run.peak_at("kurtosis")
    rows.append([
        named(item, run.name), *(_cell([read(run)], show) for _, read, show in columns),
        f"{where[0]}, {where[1]:,}" if where else "-",
        _cell([run.seconds], lambda seconds: f"{seconds:.0f}"),
        text(terminal.status(run)) + "".join(
            f'<br><span class="chip no">left ladder {text(one["ladder"])} at step '
            f'{text(one["step"])}</span>' for one in alarms.read(run.path)[:1])])
  return table(["run", *(c[0] for c in columns), "peak at layer, step", "seconds", "status"], rows,
               "sortable")


def _cell(values: Sequence[float], show: Callable[[float], str]) -> str:
  finite = [value for value in values if math.isfinite(value)]
  if not finite:
    return '<td data-value="">-</td>'
  mean = statistics.fmean(finite)
  below = f"{show(min(finite))} to {show(max(finite))}" if len(finite) > 1 else ""
  if len(finite) < len(values):
    below = f"{below + ', ' if below else ''}of {len(finite)} of {len(values)}"
  return (f'<td data-value="{mean:.8g}">{text(show(mean))}'
          f"{f'<small>{text(below)}</small>' if below else ''}</td>")


def _state(runs: Sequence[Run]) -> str:
  states = [terminal.status(run) for run in runs]
  if len({*states}) == 1:
    return states[0]
  return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _note(runs: Mapping[str, Run]) -> str:
  notes = [f"{run.name}: {note}." for run in runs.values() for note in run.notes]
  added = ("Loss added: by quantising weights and activations, nats a token. "
           if any(quantised_losses(run) for run in runs.values()) else "")
  return (f'<p class="note">Final loss: last validation loss, {text(loss_unit(runs))}. Kurtosis '
          "and MMR: in the stream entering each block, the largest layer; peaks are over logged "
          f"steps. MMR: {metrics.as_html(metrics.formula('mmr'))}. {added}"
          "Seconds: of all steps, compilation included, evaluation left out."
          f"{text(' ' + ' '.join(notes)) if notes else ''}</p>")


def differences(runs: Mapping[str, Run]) -> str:
  """Writes the fields of the config that are not the same in all runs."""
  fields = varying([run.config for run in runs.values()])
  if not fields:
    return ""
  flat = {name: flatten(run.config) for name, run in runs.items()}
  rows = [[named(item, item.run.name), *(text(series.shown(flat[name][f])) for f in fields)]
          for name, item in zip(runs, series.arrange(runs), strict=True)]
  return ("<h2>What differs between the runs</h2>" + table(["run", *fields], rows, "sortable")
          + '<p class="note">All other fields are equal; each config.json holds them.</p>')
