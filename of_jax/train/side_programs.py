"""Telemetry apart from the step, in the loop: when each family is due, and what it took.

Each family has its program and its cadence, see of_jax.train.kinds.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import jax

from of_jax.config import Config, declared_metrics
from of_jax.models.functional import Parameters
from of_jax.telemetry.observe import join_metrics
from of_jax.train.trainer import Trainer
from of_jax.train.types import Batch, Log, Metrics, SiteMetrics, State


class SidePrograms:
  """Runs what is due around a step: call `before_step` and `after_step` there.

  What a step changed, and what is measured of the model after it, is measured on a fixed batch, the
  first of the evaluation set.
  """

  def __init__(self, config: Config, trainer: Trainer, fixed: Batch):
    self._trainer, self._fixed, self._last = trainer, fixed, config.train.steps
    self._every = {name: every for name, every in declared_metrics.cadences(
        config.telemetry, config.model.kind).items() if every}
    self._found: list[SiteMetrics] = []
    self._before: Parameters | None = None
    self._seconds: dict[str, list[float]] = {}
    self._spent = 0.0

  def due(self, step: int) -> tuple[str, ...]:
    """Lists the families to measure at a step: the first, the last, and multiples of a cadence."""
    return tuple(name for name, every in self._every.items()
                 if step in (1, self._last) or step % every == 0)

  def before_step(self, due: Collection[str], state: State, batch: Batch, key: jax.Array) -> None:
    """Measures the model that the step starts from, on the step's batch."""
    programs = {name: self._trainer.side_programs[name] for name in due}
    self._found = [self._timed(name, program.run, state, batch, key)
                   for name, program in programs.items() if program.given == "before"]
    if any(program.given == "across" for program in programs.values()):
      # The step consumes the state that it is given.
      self._before = self._trainer.copied(state["params"])

  def after_step(self, due: Collection[str], state: State, metrics: Metrics) -> Metrics:
    """Gives the step's metrics with what was measured around it."""
    given: dict[str, tuple[Any, ...]] = {
        "across": (self._before, state["params"], self._fixed),
        "after": (state["params"], self._fixed)}
    for name in due:
      program = self._trainer.side_programs[name]
      if program.given in given:
        self._found.append(self._timed(name, program.run, *given[program.given]))
    self._before = None
    found, self._found = self._found, []
    return {**metrics, "telemetry": join_metrics(metrics.get("telemetry", {}), *found)}

  def spent(self) -> float:
    """Takes the seconds since this was last asked that are no step's."""
    spent, self._spent = self._spent, 0.0
    return spent

  def report(self, log: Log) -> None:
    """Says how long each family took; its first time holds its compilation, and is left out."""
    for name, seconds in self._seconds.items():
      rest = seconds[1:]
      text = (f"{sum(rest) / len(rest):.3f} s each" if rest
              else f"{seconds[0]:.1f} s with its compilation")
      log(f"telemetry {name}: measured {len(seconds)} times, {text}")

  def _timed(self, name: str, program: Callable[..., SiteMetrics], *arguments: Any) -> SiteMetrics:
    jax.block_until_ready(arguments)
    begun = time.perf_counter()
    found: SiteMetrics = jax.block_until_ready(program(*arguments))
    seconds = time.perf_counter() - begun
    self._seconds.setdefault(name, []).append(seconds)
    self._spent += seconds
    return found
