"""The figure of a fit, from what fit.json holds alone: the law over the points, residuals below."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from of_jax.storage.run_directory import whole

FIGURE = "fit"
_STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
               "axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "of_jax",
               "svg.fonttype": "none", "axes.titlesize": 10, "axes.titlelocation": "left"}
_BLUE, _INK, _RED = "#2166ac", "#333333", "#b2182b"


def save(found: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes fit.png and fit.svg into `folder`."""
  import matplotlib
  with matplotlib.rc_context(_STYLE):
    figure = draw(found)
    paths = [folder / f"{FIGURE}.png", folder / f"{FIGURE}.svg"]
    with whole(paths[0]) as place:
      figure.savefig(place, dpi=160)
    with whole(paths[1]) as place:
      figure.savefig(place, metadata={"Date": None})
  return paths


def write_svg(found: Mapping[str, Any], file: Any) -> None:
  """Writes the figure as SVG into an open text file."""
  import matplotlib
  with matplotlib.rc_context(_STYLE):
    draw(found).savefig(file, format="svg", metadata={"Date": None})


def draw(found: Mapping[str, Any]) -> Any:
  """Draws target against variable, both on logarithmic axes; or, for a law of several variables,
  against the law's own value."""
  # Without pyplot: no display, no global state, nothing to close.
  from matplotlib.figure import Figure
  figure = Figure(figsize=(6.4, 5.6), layout="constrained")
  upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
  x = found["x"][0] if found["band"] else None
  points, held = found["points"], found["held_out"]["points"]
  at = [p[x] if x else p["fitted"] for p in points]
  at_held = [p[x] if x else p["median"] for p in held]
  _law(upper, found, x)
  upper.plot(at, [p["y"] for p in points], "o", color=_INK, markersize=4, label="runs fitted")
  if held:
    upper.plot(at_held, [p["y"] for p in held], "o", color=_RED, markersize=6, fillstyle="none",
               label="runs held out")
  for number, one in enumerate(found["forecasts"]):
    low, high = one["interval_90"]
    place = one[x] if x else one["median"]
    upper.plot([place], [one["median"]], "D", color=_BLUE, markersize=5, fillstyle="none",
               label="forecast, 90 %" if not number else None)
    if low is not None and high is not None:
      upper.plot([place, place], [low, high], color=_BLUE)
  upper.set(xscale="log", yscale="log", ylabel=found["y"], title=_title(found))
  upper.legend(frameon=False, fontsize=8)
  lower.axhline(0, color=_BLUE, linewidth=1)
  lower.plot(at, [100 * p["log_residual"] for p in points], "o", color=_INK, markersize=4)
  if held:
    lower.plot(at_held, [100 * p["log_error"] for p in held], "o", color=_RED, markersize=6,
               fillstyle="none")
  lower.set(xscale="log", ylabel="log residual, %",
            xlabel=x or f"the law's {found['y']}, of {', '.join(found['x'])}")
  _ticks(upper, lower)
  return figure


def _law(axes: Any, found: Mapping[str, Any], x: str | None) -> None:
  if x is None:
    values = [p["fitted"] for p in found["points"]]
    ends = [min(values), max(values)]
    axes.plot(ends, ends, color=_BLUE, label="the law")
    return
  band = found["band"]
  at = np.log([p[x] for p in band])
  fine = np.linspace(at[0], at[-1], 100)

  def along(values: list[float | None]) -> Any:
    known = np.array([np.nan if v is None else math.log(v) for v in values])
    return np.exp(np.interp(fine, at, known))

  axes.plot(np.exp(fine), along([p["median"] for p in band]), color=_BLUE, label="the law")
  axes.fill_between(np.exp(fine), along([p["low"] for p in band]),
                    along([p["high"] for p in band]), color=_BLUE, alpha=0.15, linewidth=0,
                    label=f"{100 * found['uncertainty']['level']:g} % of new runs")


def _title(found: Mapping[str, Any]) -> str:
  said = []
  for name, one in found["parameters"].items():
    text = f"{name} = {one['value']:.3g}"
    if one["low"] is not None and one["high"] is not None:
      text += f" [{one['low']:.3g}, {one['high']:.3g}]"
    elif name in found["not_identified"]:
      text += " (not identified)"
    said.append(text)
  lines = [f"{found['y']} = {found['formula']}"]
  for text in said:
    if len(lines) == 1 or len(lines[-1]) + len(text) > 75:
      lines.append(text)
    else:
      lines[-1] += ", " + text
  return "\n".join(lines)


def _ticks(upper: Any, lower: Any) -> None:
  """Labels an axis of less than a decade too."""
  from matplotlib.ticker import LogLocator, NullFormatter
  for axis in (upper.yaxis, lower.xaxis):
    low, high = axis.get_view_interval()
    if low > 0 and math.log10(high / low) < 2:
      axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if high / low < 10 else (1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
