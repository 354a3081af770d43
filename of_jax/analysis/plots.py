"""The figure that a README can carry. Enters: runs. Leaves: figure.svg and figure.png.

Two panels of the first setting that holds more than one block: kurtosis of the worst layer
against step, and loss.
"""

import html
import io
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from of_jax.analysis import series
from of_jax.analysis.runs import Run, loss_unit

FIGURE = "figure"
_POINTS = 400
_STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "of_jax", "svg.fonttype": "none",
          "axes.titlesize": 10, "axes.titlelocation": "left"}


def headline(runs: Mapping[str, Run]) -> list[series.Series]:
  """The runs of the first condition that compares groups; of the first one if none does."""
  arranged = series.arrange(runs)
  by_condition: dict[str, list[series.Series]] = {}
  for item in arranged:
    by_condition.setdefault(item.condition, []).append(item)
  several = [c for c in by_condition.values() if len({i.group for i in c}) > 1]
  return (several or list(by_condition.values()))[0]


def save(runs: Mapping[str, Run], folder: pathlib.Path) -> None:
  """Writes figure.svg and figure.png into `folder`."""
  with styled():
    items = headline(runs)
    figure = _draw(items, ("kurtosis", "loss"), (8.4, 3.3), items[0].condition)
    figure.savefig(folder / f"{FIGURE}.png", dpi=160)
    figure.savefig(folder / f"{FIGURE}.svg", metadata={"Date": None})


def svg(runs: Mapping[str, Run]) -> list[str]:
  """The two panels apart, as `<svg>` elements, so that a narrow screen can stack them."""
  texts = []
  with styled():
    for panel in ("kurtosis", "loss"):
      texts.append(as_element(_draw(headline(runs), (panel,), (4.6, 3.3)), panel,
                              f"{panel} against step"))
  return texts


def as_element(figure: Any, name: str, label: str) -> str:
  """A figure as an `<svg>` element for a page: no size of its own, ids that begin with `name`."""
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
  """The style of every figure, as a context."""
  # Text stays text in the SVG: selectable, in the reader's own font, and a small file.
  return matplotlib.rc_context(_STYLE)


def _draw(items: list[series.Series], panels: tuple[str, ...], size: tuple[float, float],
          condition: str = "") -> Any:
  # Without pyplot: no display, no global state, nothing to close.
  figure = Figure(figsize=size, layout="constrained")
  if condition:
    figure.suptitle(condition, fontsize=9, color="#555555", x=0.01, ha="left")
  for index, panel in enumerate(panels):
    axes = figure.add_subplot(1, len(panels), index + 1)
    (_kurtosis if panel == "kurtosis" else _loss)(axes, items)
    axes.set_xlabel("step")
  return figure


def _kurtosis(axes: Any, items: list[series.Series]) -> None:
  for item in items:
    measured = item.run.measured("kurtosis")
    steps, values = series.thin(
        measured.steps, series.over_layers(measured.values, True), _POINTS, largest=True)
    axes.plot(steps, values, color=item.colour, linestyle=_dash(item), label=_label(item))
  axes.set_yscale("log")
  low, high = axes.get_ylim()
  axes.set_ylim(min(low, 0.95), max(high, 3))
  axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 else (1,)))
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_locator(NullLocator())
  axes.set_ylabel("kurtosis (1 to width)")
  axes.set_title("Kurtosis of the stream, worst layer")
  axes.legend(frameon=False, fontsize=9)


def _loss(axes: Any, items: list[series.Series]) -> None:
  low: list[float] = []
  high: list[float] = []
  for item in items:
    curves = item.run.train
    steps, values = series.thin(curves.steps, curves.loss, _POINTS)
    axes.plot(steps, values, color=item.colour, linewidth=0.7, alpha=0.35)
    if item.run.eval.steps.size:
      axes.plot(item.run.eval.steps, item.run.eval.loss, color=item.colour,
                linestyle=_dash(item), marker="o", markersize=3, label=_label(item))
    # The first tenth falls from its initial value and would flatten the rest.
    late = values[steps > steps[-1] / 10] if steps.size else values
    low += [float(v) for v in late if v == v]
    high += [float(v) for v in late if v == v]
  if low:
    margin = 0.05 * (max(high) - min(low)) + 1e-3
    axes.set_ylim(min(low) - margin, max(high) + margin)
  axes.set_ylabel(loss_unit({item.run.name: item.run for item in items}))
  axes.set_title("Loss: validation (dots), training (faint)")


def _dash(item: series.Series) -> str:
  return {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}[item.dash]


def _label(item: series.Series) -> str:
  return f"{item.group}, seed {item.seed}"
