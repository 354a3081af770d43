"""Panels drawn with matplotlib. Enters: panels. Leaves: PNG and SVG files, or `<svg>` texts."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from of_jax.report import panels as panels_lib
from of_jax.report import plots, ticks
from of_jax.report.panel import Panel
from of_jax.storage.run_directory import whole

_COLUMNS = 2
# Of so many curves a panel has a legend; names of so many letters stand two a row.
_LEGEND, _LETTERS_OF_HALF, _INCHES_A_ROW = 12, 30, 0.16
_WRAP = 76


def save_all(measurements: Sequence[Mapping[str, Any]], analyses: Mapping[str, Any],
             folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes measure.png and .svg, and a pair of files an analysis; returns the paths."""
  figures = {"measure": panels_lib.of_measurements(measurements), **{
      name: panels_lib.of_analysis(analysis) for name, analysis in analyses.items()}}
  return [path for name, shown in figures.items() if shown for path in save(shown, folder, name)]


def save(shown: Sequence[Panel], folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Writes NAME.png and NAME.svg; returns their paths."""
  paths = [folder / f"{name}.png", folder / f"{name}.svg"]
  with plots.styled():
    figure = draw(shown)
    with whole(paths[0]) as place:
      figure.savefig(place, dpi=150)
    with whole(paths[1]) as place:
      figure.savefig(place, metadata={"Date": None})
  return paths


def svg(shown: Sequence[Panel], name: str) -> str:
  """Draws the panels as one `<svg>` element, whose ids begin with `name`."""
  with plots.styled():
    return plots.as_element(draw(shown), name, shown[0].title)


def draw(shown: Sequence[Panel]) -> Any:
  """Draws all panels in two columns, as a matplotlib figure."""
  columns = min(_COLUMNS, len(shown))
  rows = -(-len(shown) // columns)
  legends = max(_rows(panel) for panel in shown)
  figure = Figure(figsize=(4.8 * columns, (3.5 + _INCHES_A_ROW * legends) * rows),
                  layout="constrained")
  for index, panel in enumerate(shown):
    _draw(figure.add_subplot(rows, columns, index + 1), panel)
  return figure


def _draw(axes: Any, panel: Panel) -> None:
  count = len(panel.lines)
  for i, line in enumerate(panel.lines):
    colour = colormaps["viridis"](0.9 * i / max(1, count - 1))
    y = [float("nan") if value is None else value for value in line.y]
    if line.sizes is not None:
      axes.scatter(line.x, y, s=[4 + 90 * (size or 0) for size in line.sizes], color=colour,
                   label=line.name, linewidths=0, clip_on=False)
      # Whose line goes on to the end is named there.
      if line.x[-1] == max(x for other in panel.lines for x in other.x if x is not None):
        axes.annotate(line.name.removeprefix("neuron "), (line.x[-1], y[-1]), xytext=(7, 0),
                      textcoords="offset points", fontsize=6, va="center", color="#333333",
                      annotation_clip=False)
    else:
      axes.plot(line.x, y, color=colour, marker="o", markersize=3, label=line.name, clip_on=False)
  values = [v for line in panel.lines for v in line.y if v is not None]
  at = [float(x) for line in panel.lines for x in line.x if x is not None]
  if panel.log and values and min(values) > 0:
    ticks.logarithmic(axes.yaxis, values)
  elif all(float(value).is_integer() for value in values):
    ticks.whole(axes.yaxis)
  if panel.x == "step" and at:
    # Checkpoints are log-spaced from 0, which a log axis lacks.
    ticks.steps(axes.xaxis, at)
  else:
    ticks.whole(axes.xaxis)
  axes.set_xlabel(panel.x)
  axes.set_ylabel(panel.y)
  axes.set_title(_wrapped(panel.definition), fontsize=7, color="#555555")
  # Above the definition, which may have any number of lines.
  axes.annotate(panel.title, (0, 1), (0, 8 + 9.5 * (_wrapped(panel.definition).count("\n") + 1)),
                xycoords="axes fraction", textcoords="offset points", fontsize=9, weight="bold")
  if _rows(panel):
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(-0.02, -0.17),
                ncols=_across(panel), borderaxespad=0)


def _rows(panel: Panel) -> int:
  """How many rows a panel's legend has; none for one curve, or too many to tell apart."""
  count = len(panel.lines)
  return -(-count // _across(panel)) if 1 < count <= _LEGEND else 0


def _across(panel: Panel) -> int:
  return 2 if max(len(line.name) for line in panel.lines) <= _LETTERS_OF_HALF else 1


def _wrapped(text: str) -> str:
  return "\n".join(textwrap.wrap(text, _WRAP))
