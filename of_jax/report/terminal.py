"""Tables for a terminal. Enters: runs, claims as study.json holds them. Leaves: printed text."""

import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from of_jax.analysis.runs import Run, loss_unit
from of_jax.config import Config, gpu_attention
from of_jax.config.kinds import kind_of
from of_jax.report.differences import differing, in_words
from of_jax.storage.run_directory import DONE

_STYLES = {"reproduced": "green", "not reproduced": "red", "inconclusive": "yellow"}


def console() -> Console:
  """Opens standard output; in a pipe a line is as long as a table needs, for nothing reflows it."""
  return Console() if sys.stdout.isatty() else Console(width=110)


def duration(seconds: float) -> str:
  """Writes seconds as a reader says them: 12.3 s, 4 min 05 s, 2 h 07 min."""
  if not math.isfinite(seconds):
    return "-"
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def show(value: float) -> str:
  """Writes a measured number to three significant digits; a dash where there is none."""
  if not math.isfinite(value):
    return "-"
  return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def show_loss(value: float) -> str:
  """Writes a loss to a thousandth; a small one, as of images, to three significant digits."""
  if not math.isfinite(value):
    return "-"
  return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"


def show_accuracy(value: float) -> str:
  """Writes a share in per cent."""
  return f"{value:.2%}" if math.isfinite(value) else "-"


def status(run: Run) -> str:
  """Says that a run is finished, diverged or loaded from elsewhere, or how far it is."""
  if run.is_loaded:
    return "loaded"
  if run.diverged:
    return "diverged"
  return "finished" if run.finished else f"step {run.steps_done:,} of {run.config.train.steps:,}"


def print_runs(out: Console, runs: Mapping[str, Run]) -> None:
  """Prints a line a run: final loss, for images accuracy, peak kurtosis, peak MMR, seconds."""
  table = Table()
  table.add_column("run", no_wrap=True)
  images = any(run.reads_images for run in runs.values())
  for column in ("final loss", *(["accuracy"] if images else []), "peak kurtosis", "peak MMR",
                 "seconds"):
    table.add_column(column, justify="right")
  finished = all(status(run) == "finished" for run in runs.values())
  if not finished:
    table.add_column("status")
  for run in runs.values():
    cells = [escape(run.name), show_loss(run.final_loss),
             *([show_accuracy(run.final_accuracy)] if images else []), show(run.peak("kurtosis")),
             show(run.peak("mmr")), f"{run.seconds:.1f}" if math.isfinite(run.seconds) else "-"]
    table.add_row(*cells, *([] if finished else [status(run)]))
  out.print(table)
  out.print(f"final loss: last validation loss, {loss_unit(runs)}. kurtosis, MMR: largest over "
            "layers and steps, stream entering each block.", style="dim", highlight=False)


def print_claims(out: Console, claims: Sequence[Mapping[str, Any]]) -> None:
  """Prints each claim with its verdict, its rule and what the rule read."""
  for claim in claims:
    verdict = str(claim["verdict"])
    style = _STYLES.get(verdict, "")
    out.print()
    out.print(f"[{style}][bold]{escape(verdict.upper())}[/bold][/{style}]  "
              f"{escape(str(claim['statement']))}", highlight=False)
    lines = Table.grid(padding=(0, 2))
    lines.add_row("  found", escape(str(claim.get("summary", ""))))
    lines.add_row("  rule", escape(str(claim["rule"])), style="dim")
    out.print(lines)
  out.print()


def print_plan(out: Console, planned: Mapping[str, Config],
               root: pathlib.Path | None) -> None:
  """Prints the runs that a study would train, what tells each apart, and which are finished."""
  table = Table("run", "what is not as in most runs", "done")
  for name, own in differing(planned).items():
    table.add_row(escape(name), escape(in_words(own)),
                  "yes" if root is not None and (root / name / DONE).exists() else "")
  out.print(table)
  first = next(iter(planned.values()))
  size = (f"{first.train.batch_size:,} images" if kind_of(first.model.kind).inputs == "images" else
          f"{first.train.batch_size} x {first.train.sequence_length} tokens")
  out.print(f"{len(planned)} runs of {first.train.steps:,} steps of {size} on "
            f"{escape(first.data.corpus)}; nothing was started", highlight=False)
  for line in _attention_on_gpus(planned):
    out.print(line, highlight=False, markup=False)


def _attention_on_gpus(planned: Mapping[str, Config]) -> list[str]:
  """Says of which runs attention is fused on a GPU, and of which not and why."""
  runs: dict[str, list[str]] = {}
  for name, config in planned.items():
    choice = gpu_attention.choice_of(config, gpu_attention.USUAL_CARD)
    if choice is not None:
      runs.setdefault(choice.text(), []).append(name)
  return [f"On A100, H100, H200 or B200 attention is {text}"
          + (f": {', '.join(names)}" if len(names) < len(planned) else "")
          for text, names in runs.items()]
