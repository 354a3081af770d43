"""Telemetry that costs a forward pass of its own: when it is due, and what it took.

Each family has its program and its cadence, so that the train step is the same executable
whether they are measured or not.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import jax

from of_jax.config import Config, declared_metrics
from of_jax.train.step import Batch, State, Trainer

_CHANGE = "moment_updates"
_QUANTISED = declared_metrics.QUANTISED


class Costly:
  """Call `before_step` and `after_step` around the steps at which something is due.

  What a step changed, and the quantised model after it, is measured on a fixed batch, the first of
  the evaluation set.
  """

  def __init__(self, config: Config, trainer: Trainer, fixed: Batch):
    self._trainer, self._fixed, self._last = trainer, fixed, config.train.steps
    self._every = {name: every for name, every in declared_metrics.cadences(
        config.telemetry, config.model.kind).items() if every}
    self._found: list[Any] = []
    self._before: Any = None
    self._seconds: dict[str, list[float]] = {}
    self._spent = 0.0

  def due(self, step: int) -> tuple[str, ...]:
    """The families to measure at a step: the first, the last, and the multiples of a cadence."""
    return tuple(name for name, every in self._every.items()
                 if step in (1, self._last) or step % every == 0)

  def before_step(self, due: Collection[str], state: State, batch: Batch, key: jax.Array) -> None:
    """Measures the model that the step starts from, on the step's batch."""
    self._found = [self._timed(name, self._trainer.apart[name], state, batch, key)
                   for name in due if name not in (_CHANGE, _QUANTISED)]
    if _CHANGE in due:
      # The step consumes the state that it is given.
      self._before = self._trainer.copied(state["params"])

  def after_step(self, due: Collection[str], state: State, metrics: dict[str, Any]
                 ) -> dict[str, Any]:
    """The step's metrics with what was measured around it."""
    if _CHANGE in due:
      self._found.append(self._timed(
          _CHANGE, self._trainer.change, self._before, state["params"], self._fixed))
      self._before = None
    if _QUANTISED in due:
      self._found.append(self._timed(
          _QUANTISED, self._trainer.quantised, state["params"], self._fixed))
    telemetry = {site: dict(found) for site, found in metrics.get("telemetry", {}).items()}
    for part in self._found:
      for site, found in part.items():
        telemetry.setdefault(site, {}).update(found)
    self._found = []
    return {**metrics, "telemetry": telemetry}

  def spent(self) -> float:
    """Seconds since this was last asked, which are no step's."""
    spent, self._spent = self._spent, 0.0
    return spent

  def report(self, log: Callable[[str], None]) -> None:
    """Says what each family took; its first time holds its compilation, and is left out."""
    for name, seconds in self._seconds.items():
      rest = seconds[1:]
      text = (f"{sum(rest) / len(rest):.3f} s each" if rest
              else f"{seconds[0]:.1f} s with its compilation")
      log(f"telemetry {name}: measured {len(seconds)} times, {text}")

  def _timed(self, name: str, program: Any, *arguments: Any) -> Any:
    jax.block_until_ready(arguments)
    begun = time.perf_counter()
    found = jax.block_until_ready(program(*arguments))
    seconds = time.perf_counter() - begun
    self._seconds.setdefault(name, []).append(seconds)
    self._spent += seconds
    return found
