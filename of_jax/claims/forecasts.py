"""Forecasts of a study's ladders on disk: written once, before the runs that they are of.

Enters: ladders, runs as far as they got. Leaves: a file a ladder under forecasts/, which is never
written again, and what study.json says of it, with the file's hash and, later, its score.
"""

import datetime
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.analysis.runs import Run
from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.scaling import forecast as forecasting
from of_jax.scaling import ladder as ladders
from of_jax.scaling.intervals import Interval
from of_jax.scaling.ladder import Ladder
from of_jax.storage import run_directory
from of_jax.storage.run_directory import CONFIG, METRICS, read_object, write_json

FOLDER = "forecasts"
# Who holds it may write a forecast; beside the runs' own claims.
_CLAIM = ".forecasts"


class Forecasts:
  """The ladders of a study in its folder.

  Attributes:
    held_out: ladder's id -> names of the runs that wait for its forecast.
  """

  def __init__(self, root: pathlib.Path, declared: Sequence[Ladder],
               configs: Mapping[str, Config]):
    """Raises UserError for a ladder that cannot be forecast."""
    self._root = root
    self._ladders = {ladder.id: ladder for ladder in declared}
    if len(self._ladders) < len(declared):
      raise UserError("ladders need different ids, here are "
                      + ", ".join(ladder.id for ladder in declared))
    self._rungs = {ladder.id: ladders.rungs(ladder, configs) for ladder in declared}
    self.held_out = {name: rungs.held_out for name, rungs in self._rungs.items()}
    for one in self._rungs.values():
      for name in one.fitted:
        if any(name in held for held in self.held_out.values()):
          raise UserError(f"run {name} is held out by one ladder and fitted by another")

  def declared(self) -> list[dict[str, Any]]:
    """Lists what study.json holds of each ladder."""
    return [ladders.declared(ladder, self._rungs[name]) for name, ladder in self._ladders.items()]

  def check(self, previous: Mapping[str, Any] | None) -> None:
    """Checks that nothing was changed since the study began.

    Raises:
      UserError: another grid, law or target than was declared, or a forecast that is gone or reads
        otherwise than when it was written.
    """
    before = {one["id"]: one for one in (previous or {}).get("ladders", [])}
    now = {one["id"]: one for one in self.declared()}
    if previous is not None and {*before} != {*now}:
      raise UserError(f"--root={self._root}: holds a study with other ladders "
                      f"({', '.join(before) or 'none'}, not {', '.join(now) or 'none'}); a changed "
                      "grid is another study: choose another folder")
    for name, one in before.items():
      if one["sha256"] != now[name]["sha256"]:
        field = next((k for k in now[name] if k != "sha256" and one.get(k) != now[name][k]),
                     "declaration")
        raise UserError(f"--root={self._root}: ladder {name} was declared with another {field}; a "
                        "changed ladder is another study: choose another folder")
    for entry in (previous or {}).get("forecasts", []):
      path = self._path(entry["ladder"])
      if not path.is_file():
        raise UserError(f"{path}: gone, though the study has a forecast of {entry['written_at']}; "
                        "a forecast is never made again: put the file back")
      if _sha256(path) != entry["sha256"]:
        raise UserError(f"{path}: was changed after it was written (sha256 {_sha256(path)[:12]}, "
                        f"not {entry['sha256'][:12]}); put the old file back")

  def waiting(self) -> set[str]:
    """Names the runs that may not start, for lack of a forecast."""
    return {name for ladder, held in self.held_out.items() if not self._path(ladder).exists()
            for name in held}

  def fitted(self, ladder: str) -> tuple[str, ...]:
    """Names the runs that a ladder's forecast is made of."""
    return self._rungs[ladder].fitted

  def missing(self) -> list[str]:
    """Names the ladders that have no forecast yet."""
    return [name for name in self._ladders if not self._path(name).exists()]

  def write(self, name: str, runs: Mapping[str, Run]) -> bool:
    """Writes a ladder's forecast, if nobody has and no other worker is about to.

    Args:
      name: of the ladder.
      runs: all that it is fitted to, finished.

    Returns:
      Whether it was written here.
    """
    path = self._path(name)
    with run_directory.claimed(self._root, _CLAIM) as is_ours:
      if not is_ours or path.exists():
        return False
      path.parent.mkdir(exist_ok=True)
      write_json(path, {"ladder": ladders.declared(self._ladders[name], self._rungs[name]),
                        **self._made(name, runs),
                        "metrics_sha256": {run: _sha256(self._root / run / METRICS)
                                           for run in self.fitted(name)},
                        "written_at": _now()})
    return True

  def _made(self, name: str, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Forecasts, or says why there is no forecast."""
    begun = [run for run in self.held_out[name] if (self._root / run / CONFIG).exists()]
    if begun:
      return {"refused": f"{', '.join(begun)} had begun before there was a forecast"}
    try:
      return ladders.forecast(self._ladders[name], self._rungs[name], runs)
    except UserError as error:
      return {"refused": str(error)}

  def entries(self, runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Lists the forecasts as study.json has them, an entry a held-out run, scored where it can be.
    """
    found = []
    for name, ladder in self._ladders.items():
      path = self._path(name)
      if not path.is_file():
        continue
      saved = read_object(path)
      for run in self.held_out[name]:
        row = saved.get("by_run", {}).get(run)
        found.append({
            "ladder": name, "run": run, "y": ladder.y, "size": self._rungs[name].sizes[run],
            "median": row and row["median"],
            "interval_50": row and row["interval_50"], "interval_90": row and row["interval_90"],
            "law": saved.get("fit", {}).get("formula", ladder.law),
            "data_sha256": saved.get("fit", {}).get("data_sha256"),
            "sha256": _sha256(path), "written_at": saved["written_at"],
            **({"refused": saved["refused"]} if "refused" in saved else {}),
            "score": row and score(row, runs.get(run), ladder)})
    return found

  def band(self, run: str) -> list[tuple[Ladder, Mapping[str, Any]]]:
    """Lists the bands that a held-out run's curves should stay in."""
    found = []
    for name, held in self.held_out.items():
      if run in held and self._path(name).is_file():
        band = read_object(self._path(name)).get("band")
        if band:
          found.append((self._ladders[name], band))
    return found

  def _path(self, name: str) -> pathlib.Path:
    return self._root / FOLDER / f"{name}.json"


def score(row: Mapping[str, Any], run: Run | None, ladder: Ladder) -> dict[str, Any] | None:
  """Compares a forecast with what came; None before the run is finished."""
  if run is None or not run.finished:
    return None
  y = ladder.target().of(run)
  if run.diverged or not y > 0:
    return {"y": None, "why": "diverged" if run.diverged else f"has no {ladder.y}"}
  half, most = (Interval(*row[f"interval_{level}"]) for level in (50, 90))
  return {"y": y, **forecasting.score(y, row["median"], most), "is_inside_50": half.holds(y)}


def said(entries: Sequence[Mapping[str, Any]]) -> list[str]:
  """Says what was forecast and what came, a line a forecast and one a run that is scored."""
  lines = []
  for name in dict.fromkeys(entry["ladder"] for entry in entries):
    own = [entry for entry in entries if entry["ladder"] == name]
    first = own[0]
    stamp = f"written {first['written_at']}, sha256 {first['sha256'][:12]}"
    if "refused" in first:
      lines.append(f"forecast {name}: none, {first['refused']} ({stamp})")
      continue
    lines.append(f"forecast {name}: {first['y']} at size {first['size']:g} is "
                 f"{first['median']:.4g}, 90 % of runs {_between(first['interval_90'])}, by "
                 f"{first['law']} ({stamp})")
    for entry in own:
      if entry["score"] and entry["score"]["y"] is None:
        lines.append(f"  {entry['run']}: {entry['score']['why']}")
      elif entry["score"]:
        lines.append(f"  {entry['run']}: came to {entry['score']['y']:.4g}, "
                     f"{'inside' if entry['score']['is_inside'] else 'OUTSIDE'}")
  return lines


def _between(interval: Sequence[float | None]) -> str:
  return " to ".join("anything" if end is None else f"{end:.4g}" for end in interval)


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
