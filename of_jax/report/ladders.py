"""Forecasts on the page. Enters: study.json's forecasts and the files they name. Leaves: HTML."""

import dataclasses
import html
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.claims.forecasts import FOLDER
from of_jax.errors import UserError
from of_jax.scaling import figure
from of_jax.storage.run_directory import read_object


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A ladder: its entries in study.json, its fit, and its figure as SVG; no fit where there is no
  forecast."""

  entries: Sequence[Mapping[str, Any]]
  fit: Mapping[str, Any] | None
  svg: str


def drawn(root: pathlib.Path, study: Mapping[str, Any]) -> list[Drawn]:
  """Draws every ladder of a study that is forecast, held-out runs as hollow points."""
  found = []
  entries = study.get("forecasts", [])
  for name in dict.fromkeys(entry["ladder"] for entry in entries):
    own = [entry for entry in entries if entry["ladder"] == name]
    path = root / FOLDER / f"{name}.json"
    if not path.is_file():
      raise UserError(f"{path}: gone, though study.json has a forecast of that name")
    fit = read_object(path).get("fit")
    found.append(Drawn(own, fit, _svg(_scored(fit, own)) if fit else ""))
  return found


def _scored(fit: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Puts what came into the fit, which was written before."""
  asked = fit["forecasts"][0]
  points = [{**asked, "name": entry["run"], **entry["score"]} for entry in entries
            if entry["score"] and entry["score"]["y"] is not None]
  return {**fit, "held_out": {**fit["held_out"], "points": points}}


def _svg(fit: Mapping[str, Any]) -> str:
  text = io.StringIO()
  figure.write_svg(fit, text)
  return text.getvalue()[text.getvalue().index("<svg"):]


def section(ladders: Sequence[Drawn]) -> str:
  """Writes the part of the page on ladders; nothing without any."""
  if not ladders:
    return ""
  parts = ['<h2>Ladders</h2><p class="note">Each law was fitted to the smaller sizes, and its '
           "forecast of the largest was on disk before that was trained. Hollow: the runs that "
           "were held out. The band holds 90 % of new runs, if the law goes on.</p>"]
  for one in ladders:
    name = one.entries[0]["ladder"]
    rows = "".join(f"<dt>{html.escape(what)}</dt><dd>{html.escape(text)}</dd>"
                   for what, text in _rows(one))
    parts.append(f'<article class="claim"><h3>{html.escape(name)}</h3><dl>{rows}</dl>'
                 f'<div class="pair"><div>{one.svg}</div></div></article>')
  return "\n".join(parts)


def _rows(one: Drawn) -> list[tuple[str, str]]:
  """Says what was forecast, by what, and what came."""
  first = one.entries[0]
  stamp = f"{first['written_at']}, sha256 {first['sha256']}"
  if one.fit is None:
    return [("Forecast", f"none: {first.get('refused', '')}"), ("Written", stamp)]
  parameters = ", ".join(
      f"{name} = {p['value']:.3g} ({_ends([p['low'], p['high']])})"
      for name, p in one.fit["parameters"].items())
  rows = [("Law", f"{one.fit['y']} = {one.fit['formula']}; {parameters}, 90 % intervals"),
          ("Measured", str(one.fit["y_says"])),
          ("Forecast", f"{first['median']:.4g} at size {first['size']:g}; half of runs "
           f"{_ends(first['interval_50'])}, 90 % {_ends(first['interval_90'])}")]
  scores = [(entry["run"], entry["score"]) for entry in one.entries if entry["score"]]
  rows.append(("Came to", "; ".join(
      f"{run}: {score['y']:.4g}, {'inside' if score['is_inside'] else 'outside'} the 90 %"
      if score["y"] is not None else f"{run}: {score['why']}" for run, score in scores)
      or "not trained yet"))
  if one.fit["left_out"]:
    rows.append(("Left out", "; ".join(f"{why}: {', '.join(names)}"
                                       for why, names in one.fit["left_out"].items())))
  return [*rows, ("Written", stamp)]


def _ends(interval: Sequence[float | None]) -> str:
  return " to ".join("no end" if end is None else f"{end:.4g}" for end in interval)
