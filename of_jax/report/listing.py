"""A list of runs that compares them. Enters: run directories, finished or not. Leaves: an object a
run, for JSON and CSV, and lines of a table.
"""

import csv
import io
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from of_jax.analysis.runs import Run, load_run
from of_jax.analysis.tidy import Row, rows
from of_jax.config.values import show as as_typed
from of_jax.errors import UserError
from of_jax.report.differences import differing, in_words
from of_jax.report.terminal import duration, show, show_loss, status
from of_jax.storage.run_directory import CONFIG, METRICS, TIMING

# A run that wrote nothing for so many of its records' times, or seconds, is not thought to go on.
_SILENT_RECORDS, _SILENT_SECONDS = 20, 120.0
SORTS = {"name": ("run", False), "loss": ("validation_loss", False),
         "kurtosis": ("peak_kurtosis", True), "updated": ("updated_at", True)}


def read(found: Mapping[str, Path]) -> tuple[dict[str, Run], dict[str, str]]:
  """Reads runs by name; those that cannot be read come back with what is wrong with them."""
  runs, faults = {}, {}
  for name, path in found.items():
    try:
      runs[name] = load_run(path)
    except UserError as error:
      faults[name] = str(error)
  return runs, faults


def describe(runs: Mapping[str, Run], faults: Mapping[str, str], sort: str = "name",
             now: float | None = None) -> list[dict[str, Any]]:
  """Makes an object a run: its state, its numbers, NaN where there is none, and what differs.

  Args:
    runs, faults: as `read` gives them.
    sort: one of SORTS.
    now: seconds since 1970; default the clock's.
  """
  now = time.time() if now is None else now
  differences = differing({name: run.config for name, run in runs.items()})
  described = [_describe(name, run, differences[name], now) for name, run in runs.items()]
  key, falls = SORTS[sort]
  if sort != "name":
    # Those without the number come last, whichever way it goes.
    described.sort(key=lambda one: (math.isnan(one[key]), -one[key] if falls else one[key]))
  return described + [{"run": name, "status": "cannot be read", "fault": fault}
                      for name, fault in faults.items()]


def _describe(name: str, run: Run, differs: Mapping[str, Any], now: float) -> dict[str, Any]:
  changed = _changed(run.path)
  # The first record has the compiler's time in it.
  each = run.seconds_by_step[1:] if run.seconds_by_step.size > 1 else run.seconds_by_step
  each = each[np.isfinite(each)]
  usual = float(np.median(each)) if each.size else math.nan
  steps = run.config.train.steps
  records = (steps - run.steps_done) / run.config.train.log_every
  is_over = run.finished or run.diverged or run.is_loaded
  silent = now - changed > max(_SILENT_SECONDS, _SILENT_RECORDS * np.nan_to_num(usual))
  place = run.peak_at("kurtosis") or (None, None)
  return {
      "run": name, "status": status(run), "finished": run.finished, "diverged": run.diverged,
      "is_silent": bool(silent) and not is_over, "step": run.steps_done, "steps": steps,
      "train_loss": float(run.train.loss[-1]) if run.train.loss.size else math.nan,
      "validation_loss": run.final_loss, "validation_accuracy": run.final_accuracy,
      "peak_kurtosis": run.peak("kurtosis"), "peak_kurtosis_layer": place[0],
      "peak_kurtosis_step": place[1], "peak_mmr": run.peak("mmr"), "seconds": run.seconds,
      "seconds_left": 0.0 if is_over else records * usual, "updated_at": changed,
      "checkpoints": list(run.checkpoints), "config_diff": dict(differs), "notes": list(run.notes)}


def _changed(path: Path) -> float:
  """When a run last wrote a record, or else its config, in seconds since 1970."""
  times = [file.stat().st_mtime for name in (METRICS, TIMING, CONFIG)
           if (file := path / name).is_file()]
  return max(times, default=math.nan)


def table(described: Sequence[Mapping[str, Any]], now: float | None = None) -> Table:
  """Makes a line a run for a terminal."""
  now = time.time() if now is None else now
  made = Table()
  made.add_column("run", overflow="fold")
  made.add_column("status")
  for column in ("last loss", "peak kurtosis", "left"):
    made.add_column(column, justify="right")
  made.add_column("what is not as in most runs", overflow="fold")
  for one in described:
    if "fault" in one:
      made.add_row(escape(one["run"]), one["status"], "-", "-", "-", escape(one["fault"]))
      continue
    loss = one["validation_loss"] if math.isfinite(one["validation_loss"]) else one["train_loss"]
    left = "" if one["seconds_left"] == 0 else duration(one["seconds_left"])
    if one["is_silent"]:
      left = f"silent for {duration(now - one['updated_at'])}"
    made.add_row(escape(one["run"]), one["status"], show_loss(loss), show(one["peak_kurtosis"]),
                 left, escape(in_words(one["config_diff"])))
  return made


def as_csv(described: Sequence[Mapping[str, Any]]) -> str:
  """Writes a line a run as CSV; a field that differs in some is a column `config.FIELD`."""
  plain = [{**{k: v for k, v in one.items() if k not in ("config_diff", "checkpoints", "notes")},
            **{f"config.{field}": as_typed(value)
               for field, value in one.get("config_diff", {}).items()}} for one in described]
  columns = list(dict.fromkeys(name for one in plain for name in one))
  out = io.StringIO()
  writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows({name: _cell(value) for name, value in one.items()} for one in plain)
  return out.getvalue()


def metrics_csv(runs: Mapping[str, Run]) -> Iterable[str]:
  """Writes every number of every run as CSV, a line each: run, then of_jax.analysis.tidy.Row."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(("run", *Row._fields))
  for name, run in runs.items():
    for row in rows(run.path):
      writer.writerow((name, *map(_cell, row)))
    yield out.getvalue()
    out.seek(0)
    out.truncate()


def _cell(value: Any) -> Any:
  return "" if value is None or isinstance(value, float) and math.isnan(value) else value
