"""Axes of static figures: plain numbers on logarithmic axes, steps that begin at 0, whole numbers.

Enters: matplotlib's axes with all that is drawn on them. Leaves: the same, with scale and ticks.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

# So much of an axis stays free at either end, so that no dot is cut.
_MARGIN = 0.04
_TICKS = 6


def logarithmic(axis: Any, values: Sequence[float], least: float | None = None) -> None:
  """Makes an axis logarithmic; ticks are plain numbers: 1, 2, 5, 10, or even ones if it is short.

  Args:
    axis: a matplotlib y axis or x axis.
    values: all that is drawn, above 0.
    least: what the axis begins with at the latest.
  """
  low = min([*values, *([least] if least is not None else [])])
  high = max(values)
  if high < 1.5 * low:
    low, high = low / 1.15, high * 1.15
  room = (high / low) ** _MARGIN
  low, high = low / room, high * room
  _set(axis, "log", low, high)
  _plain(axis, _decades(low, high))


def steps(axis: Any, values: Sequence[float]) -> None:
  """Makes an axis of steps logarithmic in 1 + step, which shows step 0; ticks are plain numbers."""
  low, high = min(values), max(max(values), min(values) + 1)
  room = _MARGIN * (math.log1p(high) - math.log1p(low))
  axis.axes.set_xscale("function", functions=(_log1p, np.expm1))
  axis.axes.set_xlim(max(math.expm1(math.log1p(low) - room), -0.9),
                     math.expm1(math.log1p(high) + room))
  decades = [tick for tick in _decades(1, high) if tick >= low] if high > 3 else [1.0, 2.0, 3.0]
  _plain(axis, [*([0.0] if low <= 0 else []), *(tick for tick in decades if low <= tick <= high)])


def whole(axis: Any) -> None:
  """Keeps an axis's ticks at whole numbers."""
  axis.set_major_locator(MaxNLocator(integer=True))


def _log1p(values: Any) -> Any:
  # matplotlib also asks beyond the axis's ends.
  return np.log1p(np.maximum(values, -0.99))


def _decades(low: float, high: float) -> list[float]:
  wide = math.log10(high / low)
  factors = (1, 2, 5) if wide < 2 else (1, 3) if wide < 3 else (1,)
  every = math.ceil(wide / _TICKS) or 1
  found = [factor * 10.0 ** power
           for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
           for factor in factors if power % every == 0]
  found = [tick for tick in found if low <= tick <= high]
  return found if len(found) > 2 else [
      float(tick) for tick in MaxNLocator(_TICKS).tick_values(low, high) if low <= tick <= high]


def _set(axis: Any, scale: str, low: float, high: float) -> None:
  is_y = axis.axis_name == "y"
  (axis.axes.set_yscale if is_y else axis.axes.set_xscale)(scale)
  (axis.axes.set_ylim if is_y else axis.axes.set_xlim)(low, high)


def _plain(axis: Any, ticks: Sequence[float]) -> None:
  axis.set_major_locator(FixedLocator(list(ticks)))
  axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
  axis.set_minor_locator(NullLocator())


def written(value: float) -> str:
  """Writes a tick as people do: 0.05, 20, 1,000."""
  if value and not 1e-5 <= abs(value) < 1e7:
    return f"{value:g}"
  return f"{value:,.0f}" if value == round(value) else f"{value:.6g}"
