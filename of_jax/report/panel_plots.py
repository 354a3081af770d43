"""Panels drawn with matplotlib. Enters: panels. Leaves: PNG and SVG files, or `<svg>` texts."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from of_jax.report import panels as panels_lib
from of_jax.report import plots
from of_jax.report.panel import Panel

_COLUMNS = 2
_LEGEND = 8
_WRAP = 62


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
    figure.savefig(paths[0], dpi=150)
    figure.savefig(paths[1], metadata={"Date": None})
  return paths


def svg(shown: Sequence[Panel], name: str) -> str:
  """Draws the panels as one `<svg>` element, whose ids begin with `name`."""
  with plots.styled():
    return plots.as_element(draw(shown), name, shown[0].title)


def draw(shown: Sequence[Panel]) -> Any:
  """Draws all panels in two columns, as a matplotlib figure."""
  columns = min(_COLUMNS, len(shown))
  rows = -(-len(shown) // columns)
  figure = Figure(figsize=(4.8 * columns, 3.5 * rows), layout="constrained")
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
                   label=line.name, linewidths=0)
      # Whose line goes on to the end is named there.
      if line.x[-1] == max(x for other in panel.lines for x in other.x if x is not None):
        axes.annotate(line.name.removeprefix("neuron "), (line.x[-1], y[-1]), xytext=(5, 0),
                      textcoords="offset points", fontsize=5, va="center", color=colour)
    else:
      axes.plot(line.x, y, color=colour, marker="o", markersize=3, label=line.name)
  values = [v for line in panel.lines for v in line.y if v is not None]
  if panel.log and values and min(values) > 0:
    axes.set_yscale("log")
  if panel.x == "step":
    # Checkpoints are log-spaced from 0, which a log axis lacks.
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g}")
  else:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_xlabel(panel.x)
  axes.set_ylabel(panel.y)
  axes.set_title(f"{panel.title}\n{_wrapped(panel.definition)}", fontsize=8)
  if count <= _LEGEND:
    axes.legend(frameon=False, fontsize=7)


def _wrapped(text: str) -> str:
  return "\n".join(textwrap.wrap(text, _WRAP))
