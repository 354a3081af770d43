"""Lists and compares runs: their state, last loss, peak kurtosis, time left and what differs.

  python -m experiments.runs --root=runs
  python -m experiments.runs --root=runs --watch
  python -m experiments.runs --root=runs --csv=runs.csv --metrics_csv=metrics.csv

Every run directory below DIR counts, however deep. It reads and never writes there. --csv, --json
and --metrics_csv leave the same as files, or with - print it in place of the table.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import flags
from rich.live import Live

from of_jax.analysis.runs import Run, find_all_runs, loss_unit
from of_jax.commands import cli
from of_jax.errors import UserError
from of_jax.report import listing, terminal
from of_jax.storage import run_directory

_ROOT = flags.DEFINE_string("root", "", "folder of runs, one run, or gs://BUCKET/RUN")
_SORT = flags.DEFINE_enum("sort", "name", list(listing.SORTS), "order: by name, loss from the "
                          "lowest, kurtosis from the highest, or updated, the last to write first")
_CSV = flags.DEFINE_string("csv", "", "file for a line a run; - prints it")
_JSON = flags.DEFINE_string("json", "", "file for an object a run; - prints it")
_METRICS_CSV = flags.DEFINE_string(
    "metrics_csv", "", "file for every number logged, a line each: run, step, split, site, layer, "
    "metric, value; - prints it")
_WATCH = flags.DEFINE_bool("watch", False, "show the table anew until all runs are over")
_EVERY = flags.DEFINE_float("every", 5.0, "seconds between two looks of --watch", lower_bound=0.1,
                            upper_bound=86_400.0)


def main() -> None:
  """Lists the runs of the folder that the command line names."""
  if not _ROOT.value:
    raise UserError("--root: needs a value, as in --root=runs")
  files = {flag.name: cli.output_file(flag.name) for flag in (_CSV, _JSON, _METRICS_CSV)
           if flag.value not in ("", "-")}
  printed = [flag.name for flag in (_CSV, _JSON, _METRICS_CSV) if flag.value == "-"]
  if len(printed) > 1:
    raise UserError(f"--{printed[1]}=-: --{printed[0]} is printed already; give one of them a file")
  if printed and _WATCH.value:
    raise UserError(f"--watch: shows the table, and --{printed[0]}=- prints in its place")
  described, runs = _watch() if _WATCH.value else _look()
  texts: dict[str, Callable[[], Iterable[str]]] = {
      "csv": lambda: [listing.as_csv(described)], "metrics_csv": lambda: listing.metrics_csv(runs),
      "json": lambda: [_as_json(described)]}
  for name, file in files.items():
    assert file is not None
    _leave(file, texts[name]())
  for name in printed:
    sys.stdout.writelines(texts[name]())
  if not printed and not _WATCH.value:
    _show(described, runs)
  for file in files.values():
    print(file, file=sys.stderr if printed else sys.stdout)


def _look() -> tuple[list[dict[str, Any]], dict[str, Run]]:
  found = find_all_runs(_ROOT.value)
  if not found:
    raise UserError(f"--root={_ROOT.value}: holds no run directory")
  runs, faults = listing.read(found)
  return listing.describe(runs, faults, _SORT.value), runs


def _watch() -> tuple[list[dict[str, Any]], dict[str, Run]]:
  """Shows the table until every run is over; on a terminal in place, elsewhere when it changes."""
  console = terminal.console()
  live = Live(console=console, auto_refresh=False) if console.is_terminal else None
  shown: Any = None
  with live or contextlib.nullcontext():
    while True:
      described, runs = _look()
      state = [(one["run"], one["status"]) for one in described]
      if live:
        live.update(listing.table(described), refresh=True)
      elif state != shown:
        console.print(listing.table(described))
      shown = state
      if all(one.get("seconds_left", 0.0) == 0.0 for one in described):
        return described, runs
      time.sleep(_EVERY.value)


def _show(described: list[dict[str, Any]], runs: dict[str, Run]) -> None:
  console = terminal.console()
  console.print(listing.table(described))
  console.print(f"{len(described)} runs. last loss: of validation where there is one, "
                f"{loss_unit(runs)}; kurtosis: largest over layers and steps, stream entering each "
                "block; left: at the usual speed of its steps, without evaluations.", style="dim",
                highlight=False)


def _as_json(described: list[dict[str, Any]]) -> str:
  return json.dumps(run_directory.plain({"root": _ROOT.value, "runs": described}), indent=2,
                    allow_nan=False) + "\n"


def _leave(file: Path, parts: Iterable[str]) -> None:
  run_directory.replace_text(file, "".join(parts))


if __name__ == "__main__":
  cli.run(main)
