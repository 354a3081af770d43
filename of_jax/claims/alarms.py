"""Alarms: a run that leaves the band of its ladder while it trains.

Enters: the bands of a held-out run, see of_jax.scaling.band, and what it logs. Leaves: alarms.jsonl
in its directory and one line. Nothing else changes: the run goes on.
"""

import contextlib
import json
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from of_jax.analysis.runs import load_run
from of_jax.errors import UserError
from of_jax.scaling import band
from of_jax.scaling.ladder import Ladder
from of_jax.storage.run_directory import ALARMS, CONFIG, plain, read_lines, replace_text

Bands = Sequence[tuple[Ladder, Mapping[str, Any]]]
_SECONDS_BETWEEN_LOOKS = 5.0


def find(path: pathlib.Path, bands: Bands) -> list[dict[str, Any]]:
  """Finds where a run, as far as it is logged, first left each band."""
  run = load_run(path)
  found = []
  for ladder, own in bands:
    curve = ladder.target().while_training()
    if curve is not None:
      found += [{"ladder": ladder.id, "metric": own["metric"], **one}
                for one in band.leaving(own, *curve.by_step(run))]
  return sorted(found, key=lambda one: (one["step"], one["ladder"], one["kind"]))


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the alarms of a run directory; none without a file."""
  return list(read_lines(path / ALARMS))


def said(name: str, alarm: Mapping[str, Any]) -> str:
  """Says one alarm in a line."""
  what = (f"jumped by a factor of {alarm['factor']:.3g}" if alarm["kind"] == "jump"
          else f"is {alarm['value']:.3g}")
  return (f"{name} left ladder {alarm['ladder']} at step {alarm['step']}: {alarm['metric']} "
          f"{what}, where runs like it have {alarm['low']:.3g} to {alarm['high']:.3g}")


class Watch:
  """Looks at runs that train in this process, every few seconds and once more at their end."""

  def __init__(self, bands: Mapping[pathlib.Path, Bands], say: Callable[[str], None]):
    """Args: run directory -> its bands, runs without any left out; what takes lines."""
    self._bands, self._say = {path: own for path, own in bands.items() if own}, say
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._known = {path: len(read(path)) for path in self._bands}

  def __enter__(self) -> Self:
    if self._bands:
      self._thread.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
               trace: TracebackType | None) -> None:
    if self._bands:
      self._over.set()
      self._thread.join()
      self._look()

  def _watch(self) -> None:
    while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
      self._look()

  def _look(self) -> None:
    for path, bands in self._bands.items():
      # A run that is not there yet, or that another process mends: it is looked at again.
      with contextlib.suppress(UserError, OSError):
        found = find(path, bands) if (path / CONFIG).is_file() else []
        if len(found) <= self._known[path]:
          continue
        replace_text(path / ALARMS, "".join(json.dumps(plain(one)) + "\n" for one in found))
        if not self._known[path]:
          self._say(said(path.name, found[0]))
        self._known[path] = len(found)
