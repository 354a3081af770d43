"""Closing lines of a training: what was reached, where it is, and what to type next."""

import math
import shlex

import numpy as np

from of_jax.analysis.runs import Run
from of_jax.report.terminal import duration, show, show_accuracy, show_loss


def closing(run: Run, workdir: str) -> list[str]:
  """Says what a run came to.

  Args:
    run: as read from its directory.
    workdir: as it was typed.
  """
  lines = [f"{run.steps_done:,} of {run.config.train.steps:,} steps"
           + (f" in {duration(run.seconds)}" if math.isfinite(run.seconds) else "") + _speed(run)
           + (", diverged" if run.diverged else "")]
  if math.isfinite(run.final_loss):
    accuracy = (f", accuracy {show_accuracy(run.final_accuracy)}" if run.reads_images else "")
    lines.append(f"validation loss {show_loss(run.final_loss)}{accuracy}")
  if place := run.peak_at("kurtosis"):
    lines.append(f"peak kurtosis {show(run.peak('kurtosis'))} of the stream entering layer "
                 f"{place[0]}, at step {place[1]:,}")
  name = shlex.quote(workdir)
  lines.append(f"left in {workdir}: metrics.jsonl, {len(run.checkpoints)} checkpoints")
  lines.append(f"next: python -m of_jax report --root={name}")
  return ["  " + line for line in lines]


def _speed(run: Run) -> str:
  # The first record has the compiler's time in it.
  rates = run.tokens_per_second[1:]
  rates = rates[np.isfinite(rates)]
  unit = "images" if run.reads_images else "tokens"
  return f", {np.median(rates):,.0f} {unit} a second" if rates.size else ""
