"""The figure that a README can carry. Enters: runs. Leaves: figure.svg and figure.png.

Two panels, kurtosis of the largest layer against step, and loss: of the first setting in which
there are runs of all groups (see of_jax.report.series), or of each group at its first setting.
"""

import html
import io
import math
import pathlib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from of_jax.analysis.runs import Run, loss_unit
from of_jax.report import metrics, series, ticks
from of_jax.storage.run_directory import whole

FIGURE = "figure"
_POINTS = 400
# A legend of more lines than these lies below the panels.
_LABELS_INSIDE, _INCHES_A_LABEL, _INCHES_A_LINE, _LETTERS_AN_INCH = 4, 2.0, 0.17, 15
_STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "of_jax", "svg.fonttype": "none",
          "axes.titlesize": 10, "axes.titlelocation": "left"}


def headline(runs: Mapping[str, Run]) -> tuple[list[series.Series], str]:
  """Chooses what the figure draws, and a few words on the choice."""
  arranged = series.arrange(runs)
  by_condition: dict[str, list[series.Series]] = {}
  for item in arranged:
    by_condition.setdefault(item.condition, []).append(item)
  groups = {item.group for item in arranged}
  for condition, items in by_condition.items():
    if {item.group for item in items} == groups:
      return items, condition
  return series.first_settings(arranged), "each at the first of its settings; the page has all"


def save(runs: Mapping[str, Run], folder: pathlib.Path) -> None:
  """Writes figure.svg and figure.png into `folder`."""
  with styled():
    items, said = headline(runs)
    figure = _draw(items, ("kurtosis", "loss"), (8.4, 3.3), said)
    with whole(folder / f"{FIGURE}.png") as place:
      figure.savefig(place, dpi=160)
    with whole(folder / f"{FIGURE}.svg") as place:
      figure.savefig(place, metadata={"Date": None})


def svg(runs: Mapping[str, Run]) -> list[str]:
  """Draws the two panels apart, as `<svg>` elements, so that a narrow screen can stack them."""
  texts = []
  with styled():
    for panel in ("kurtosis", "loss"):
      texts.append(as_element(_draw(headline(runs)[0], (panel,), (4.6, 3.3)), panel,
                              f"{panel} against step"))
  return texts


def as_element(figure: Any, name: str, label: str) -> str:
  """Turns a figure into an `<svg>` element for a page: no size, ids that begin with `name`."""
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg", metadata={"Date": None})
  text = buffer.getvalue()
  text = text[text.index("<svg"):]
  # The page sets the size; matplotlib's own is in points. Ids of two figures would clash.
  head = rf'<svg \1 role="img" aria-label="{html.escape(label)}">'
  text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', head, text, count=1)
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
  text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
  text = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", text)
  return text.replace("xlink:href", "href")


def styled() -> Any:
  """Sets the style of every figure, as a context."""
  # Text stays text in the SVG: selectable, in the reader's own font, and a small file.
  return matplotlib.rc_context(_STYLE)


def _draw(items: list[series.Series], panels: tuple[str, ...], size: tuple[float, float],
          condition: str = "") -> Any:
  # Without pyplot: no display, no global state, nothing to close.
  said = textwrap.fill(condition, int(_LETTERS_AN_INCH * size[0]))
  columns = max(1, int(size[0] // _INCHES_A_LABEL))
  rows = math.ceil(len(items) / columns) if len(items) > _LABELS_INSIDE else 0
  height = size[1] + _INCHES_A_LINE * (said.count("\n") + rows)
  figure = Figure(figsize=(size[0], height), layout="constrained")
  if said:
    figure.suptitle(said, fontsize=9, color="#555555", x=0.01, ha="left")
  for index, panel in enumerate(panels):
    axes = figure.add_subplot(1, len(panels), index + 1)
    (_kurtosis if panel == "kurtosis" else _loss)(axes, items)
    axes.set_xlabel("step")
  if rows:
    # Among the curves it would cover them.
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left",
                  ncols=columns, frameon=False, fontsize=8)
  elif panels[0] == "kurtosis":
    figure.axes[0].legend(frameon=False, fontsize=9)
  return figure


def _kurtosis(axes: Any, items: list[series.Series]) -> None:
  seen: list[float] = []
  for item in items:
    measured = item.run.measured("kurtosis")
    steps, values = series.thin(
        measured.steps, series.over_layers(measured.values, True), _POINTS, largest=True)
    axes.plot(steps, values, color=item.colour, linestyle=_dash(item), label=item.label)
    seen += [float(value) for value in values if math.isfinite(value) and value > 0]
  ticks.logarithmic(axes.yaxis, [*seen, 3], least=1)
  _name_ends(axes, items)
  axes.set_ylabel(metrics.STREAM["kurtosis"].axis)
  axes.set_title("Kurtosis of the stream, largest layer")


def _name_ends(axes: Any, items: list[series.Series]) -> None:
  """Names curves that look like another's where they end."""
  for item, line in zip(items, axes.lines, strict=True):
    x, y = line.get_data()
    if item.is_alike and len(x) and math.isfinite(y[-1]):
      axes.annotate(item.label, (x[-1], y[-1]), xytext=(4, 0), textcoords="offset points",
                    fontsize=7, va="center", color=item.colour, annotation_clip=False)


def _loss(axes: Any, items: list[series.Series]) -> None:
  seen: list[float] = []
  for item in items:
    curves = item.run.train
    steps, values = series.thin(curves.steps, curves.loss, _POINTS)
    axes.plot(steps, values, color=item.colour, linewidth=0.7, alpha=0.35)
    evaluated = item.run.eval
    if evaluated.steps.size:
      axes.plot(evaluated.steps, evaluated.loss, color=item.colour,
                linestyle=_dash(item), marker="o", markersize=3, label=item.label)
    # The first tenth falls from its initial value and would flatten the rest.
    for at, losses in ((steps, values), (evaluated.steps, evaluated.loss)):
      late = losses[at > at[-1] / 10] if at.size else losses
      seen += [float(loss) for loss in late if math.isfinite(loss)]
  if seen:
    margin = 0.05 * (max(seen) - min(seen)) + 1e-3
    axes.set_ylim(min(seen) - margin, max(seen) + margin)
  axes.set_ylabel(loss_unit({item.run.name: item.run for item in items}))
  axes.set_title("Loss: validation (dots), training (faint)")


def _dash(item: series.Series) -> str:
  return {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}[item.dash]
