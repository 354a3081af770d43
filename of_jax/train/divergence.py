"""Divergence: what is done where a step is not finite, `train.on_divergence`.

  stop      the run ends where its loss is not finite, with the same compiled step as ever
  skip      the step's update is left out, on the device; the optimiser's counters go on, so that
            the learning rate stays that of the step
  rollback  the run goes back to its newest checkpoint, and on with the batches behind the one that
            was met

Under `skip` and `rollback` a step is not finite where its loss, the norm of its gradients or a
parameter after it is not. All that is decided is a function of the run's steps, and what has to
be known of earlier ones is kept in checkpoints: a run that is killed ends as one that is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from of_jax.train.guard import NOT_FINITE, ROLLBACK, SKIP, STOP
from of_jax.train.replay import Replay
from of_jax.train.types import Log, Metrics

# So many updates in a row left out, or so many times gone back, are the end of the run.
MOST_SKIPPED, MOST_ROLLBACKS = 10, 10
_WATCHED = ("loss", "grad_norm", NOT_FINITE)


class RollBack(Exception):
  """A run is to go back to its newest checkpoint; `step` was not finite, under `kept`."""

  def __init__(self, step: int, kept: Mapping[str, int]):
    super().__init__(f"step {step} is not finite")
    self.step, self.kept = step, kept

  def then(self, done: int) -> dict[str, int]:
    """Says how the run goes on from the checkpoint of `done`: as `Divergence.kept` does."""
    return {"moved": self.kept["moved"] + self.step - done, "skipped": 0,
            "rollbacks": self.kept["rollbacks"] + 1}


def watched(metrics: Metrics) -> Metrics:
  """Selects the numbers of a step that `Divergence.see` reads, which wait on the device."""
  return {name: metrics[name] for name in _WATCHED if name in metrics}


class Divergence:
  """Policy of the runs that one loop trains where a step is not finite."""

  def __init__(self, policy: str, replays: Sequence[Replay],
               begun: Sequence[Mapping[str, int]], say: Log):
    """Args: the policy; of each run how its steps are computed again, and what `kept` said at the
    checkpoint that it goes on from, empty for a new one; what takes lines."""
    self._policy, self._replays, self._say = policy, replays, say
    self._kept = [{"moved": 0, "skipped": 0, "rollbacks": 0, **kept} for kept in begun]
    self._first: dict[int, int] = {}
    self._over: set[int] = set()

  @property
  def stops(self) -> bool:
    """Whether a loss that is not finite ends a run."""
    return self._policy == STOP

  def kept(self, run: int) -> dict[str, int]:
    """Says what a checkpoint keeps: how far the batches have moved on, the updates left out in a
    row, and how often the run has gone back."""
    return dict(self._kept[run])

  def see(self, run: int, step: int, numbers: Mapping[str, Any]) -> bool:
    """Looks at a step's numbers, in the order of the steps; returns whether the run is over.

    A step that was begun before that was known is not looked at.

    Raises:
      RollBack: it is to go back.
    """
    kept = self._kept[run]
    if run in self._over:
      return True
    if all(np.isfinite(numbers[name]) for name in ("loss", "grad_norm")) and not numbers.get(
        NOT_FINITE, 0):
      kept["skipped"] = 0
      return False
    is_first = run not in self._first
    self._first.setdefault(run, step)
    if self.stops:
      return False
    replay = self._replays[run]
    text = f"{replay.name}: step {step} is not finite"
    if is_first or self._policy == ROLLBACK:
      text += f", first {replay.where(step)}"
    text += replay.keep(step)
    if self._policy == SKIP:
      kept["skipped"] += 1
      over = kept["skipped"] >= MOST_SKIPPED
      if over:
        self._over.add(run)
      self._say(f"{text}; its update is left out"
                + (f", the last of {MOST_SKIPPED} in a row" if over else ""))
      return over
    if kept["rollbacks"] >= MOST_ROLLBACKS:
      self._over.add(run)
      self._say(f"{text}; the run has gone back {MOST_ROLLBACKS} times")
      return True
    self._say(f"{text}; goes back to the newest checkpoint, time {kept['rollbacks'] + 1} of at "
              f"most {MOST_ROLLBACKS}, and on with the batches behind this one")
    raise RollBack(step, self.kept(run))

  def explain(self, run: int) -> None:
    """Says of a run that stops where it first was not finite, and keeps that step's batch."""
    if self.stops and run in self._first and self._replays:
      replay, step = self._replays[run], self._first[run]
      self._say(f"{replay.name}: step {step} is the first that is not finite, first "
                f"{replay.where(step)}{replay.keep(step)}")
