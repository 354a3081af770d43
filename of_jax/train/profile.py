"""Profiling of a few steps of a run. Leaves: traces in the run directory."""

from pathlib import Path
from typing import Any, Self

import jax


class Profile:
  """Profiler of a run's steps from the first to the last of `steps`, both included.

  Its traces are in FOLDER/profile, for TensorBoard or XProf; each process traces its own devices.
  With None nothing is traced.
  """

  def __init__(self, folder: Path, steps: tuple[int, int] | None):
    self._folder, self._steps = folder / "profile", steps
    self._is_running = False

  def before_step(self, step: int, state: Any) -> None:
    """Starts tracing if this step is to be traced; `state` is the one that the step starts from."""
    # Of a run that resumed within the steps, what is left of them.
    if self._steps and self._steps[0] <= step <= self._steps[1] and not self._is_running:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder)
      self._is_running = True

  def after_step(self, step: int, state: Any) -> None:
    """Ends tracing after the last step to trace; `state` is the one that the step leaves."""
    if self._steps and self._is_running and step >= self._steps[1]:
      jax.block_until_ready(state)
      self._stop()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    """Ends tracing, also in a run that is told to stop within the steps."""
    self._stop()

  def _stop(self) -> None:
    if self._is_running:
      jax.profiler.stop_trace()
      self._is_running = False
