"""Progress for people: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from of_jax.errors import reason_of
from of_jax.train.types import Log

_SECONDS_BETWEEN_LINES = 10.0


def unfailing(log: Log) -> Log:
  """Makes of what takes lines one that never raises: a terminal that is gone, a pipe that nobody
  reads or a log file on a full disk is no reason to end a run."""
  def say(line: str) -> None:
    # ValueError: of a stream that was closed.
    with contextlib.suppress(OSError, ValueError):
      log(line)

  return say


class _Status(ProgressColumn):
  """The state of a run; before its first step, for how long it has been compiling."""

  def render(self, task: Task) -> Text:
    return Text(task.fields["status"] or f"compiling for {task.elapsed or 0:.0f} s")


class TrainingProgress:
  """Display of step, loss, tokens or images a second, MFU and time left.

  MFU, model FLOP utilisation, is the share of the devices' peak that the model's own operations
  take (Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, appendix B).
  """

  def __init__(self, name: str, start: int, steps: int, unit: str = "tokens",
               shown: bool = True):
    self._name, self._start, self._steps, self._unit = name, start, steps, unit
    self._first, self._speaks = start + 1, shown
    self._begun = self._shown = time.monotonic()
    self._bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        _Status(), TimeRemainingColumn(),
        console=Console(file=sys.stderr)) if shown and sys.stderr.isatty() else None
    if self._bar:
      self._task = self._bar.add_task(name, total=steps, completed=start, status="")

  def __enter__(self) -> Self:
    if self._bar:
      self._showing(self._bar.start)
    elif self._speaks:
      self._print(f"{self._name}: compiling, then {self._steps - self._start} steps")
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
               trace: TracebackType | None) -> None:
    if self._bar:
      self._showing(self._bar.stop)

  def _print(self, text: str) -> None:
    self._showing(lambda: print(text, flush=True))

  def _showing(self, show: Callable[[], None]) -> None:
    """Shows something; where that fails, nothing is shown from then on."""
    try:
      show()
    except (OSError, ValueError) as error:
      self._bar, self._speaks = None, False
      for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(OSError, ValueError):
          print(f"{self._name}: its progress cannot be shown, the run goes on: "
                f"{reason_of(error)}", file=stream, flush=True)
          return

  def update(self, step: int, loss: float, tokens_per_second: float,
             mfu: float | None = None, kurtosis: float | None = None) -> None:
    """Shows a logged step. The first, whose time is the compiler's, sets the clock.

    Args:
      step: how many steps are done.
      loss: nats a token, or the unit of the model's objective.
      tokens_per_second: tokens, or images, a second, all devices together.
      mfu: from 0 to 1, see of_jax.train.environment; None where the devices' peak is not known.
      kurtosis: the largest over layers, of the stream entering each block; None if not measured.
    """
    if step == self._first:
      compiled = time.monotonic() - self._begun
      self._begun, self._start = time.monotonic(), step
      if self._speaks and not self._bar and step < self._steps:
        self._print(f"{self._name}: compiled and at step {step} after {compiled:.1f} s")
    status = f"loss {loss:.4g}  {tokens_per_second:,.0f} {self._unit}/s"
    status += "" if mfu is None else f"  MFU {mfu:.1%}"
    status += "" if kurtosis is None else f"  kurtosis {kurtosis:.4g}"
    now = time.monotonic()
    if bar := self._bar:
      self._showing(lambda: bar.update(self._task, completed=step, status=status))
    elif self._speaks and (step == self._steps or (
        step > self._first and now - self._shown >= _SECONDS_BETWEEN_LINES)):
      left = (now - self._begun) / max(1, step - self._start) * (self._steps - step)
      self._print(f"{self._name}: step {step}/{self._steps}  {status}  {left:.0f} s left")
      self._shown = now

  def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Shows an evaluation: the loss, and the accuracy where `metrics` has one."""
    text = f"{self._name}: step {step}/{self._steps}  validation loss {float(metrics['loss']):.4g}"
    if "accuracy" in metrics:
      text += f"  accuracy {float(metrics['accuracy']):.2%}"
    if bar := self._bar:
      self._showing(lambda: bar.console.print(text, highlight=False))
    elif self._speaks:
      self._print(text)
