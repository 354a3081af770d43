"""A fit in words and tables, for a terminal, from what fit.json holds alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.scaling import simulate

_METHODS = {"profile": "default", "student": "t", "studentised": "studentised bootstrap",
            "percentile": "percentile", "bca": "BCa"}


def text(found: Mapping[str, Any]) -> str:
  """Says what a fit came to."""
  return "\n".join([*_head(found), *_parameters(found), *_others(found), *_noise(found),
                    *_forecasts(found), *_comparison(found)])


def _head(found: Mapping[str, Any]) -> list[str]:
  lines = [f"{found['y']} = {found['formula']}", f"  {found['y_says']}",
           f"  {len(found['points'])} points fitted, Huber's delta {found['fit']['delta']:g}, "
           f"{sum(s['converged'] for s in found['fit']['starts'])} of "
           f"{len(found['fit']['starts'])} starts ended at a minimum"]
  if not found["fit"]["converged"]:
    lines.append("  warning: the best start did not end at a minimum")
  for why, names in found["left_out"].items():
    lines.append(f"  left out, {why}: {len(names)} ({_few(names)})")
  return [*lines, *(f"  note: {note}" for note in found["notes"])]


def _few(names: Sequence[str]) -> str:
  return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _parameters(found: Mapping[str, Any]) -> list[str]:
  level = 100 * found["uncertainty"]["level"]
  rows = [["parameter", "value", f"{level:g} % interval", "standard error", ""]]
  for name, one in found["parameters"].items():
    said = found["not_identified"].get(name, "")
    if said:
      said = f"not identified: {said}"
    elif one.get("is_informative") is False:
      said = "uninformative"
    rows.append([name, number(one["value"]), interval(one["low"], one["high"]),
                 number(one["standard_error"]), said])
  return ["", *table(rows)]


def _others(found: Mapping[str, Any]) -> list[str]:
  coverage = found["uncertainty"]["coverage"]
  rows = [["interval", "of", "", "holds, simulated"]]
  for name, one in found["parameters"].items():
    for method, ends in {"profile": one, **one.get("other_intervals", {})}.items():
      held = coverage[method][name] if coverage else None
      rows.append([_METHODS[method], name, interval(ends["low"], ends["high"]),
                   "" if held is None else f"{100 * held:.0f} %"])
  if len(rows) == len(found["parameters"]) + 1:
    return []
  where = (f"Coverage at these points, by {coverage['samples']} sets of made data "
           f"(+- {100 * math.sqrt(0.09 / max(coverage['samples'], 1)):.0f} %):" if coverage
           else "Other intervals (--simulate=100 tells how often each holds):")
  return ["", where, *table(rows)]


def _noise(found: Mapping[str, Any]) -> list[str]:
  noise = found["noise"]
  if noise["growth"]:
    trend = f"taken to change as {found['size']}^{noise['growth']:.2g}"
  elif noise["p_value"] < 0.05:
    trend = f"taken as constant, though it changes with {found['size']}: see --noise"
  else:
    trend = "taken as constant"
  p = "p < 0.001" if noise["p_value"] < 1e-3 else f"p = {noise['p_value']:.2g}"
  return ["", f"Noise between runs: {100 * noise['standard_deviation']:.3g} % (n - p = "
          f"{noise['degrees']}), {trend} (a trend by {noise['by']}: {p})"]


def _forecasts(found: Mapping[str, Any]) -> list[str]:
  lines: list[str] = []
  for title, rows in (("Held out", found["held_out"]["points"]),
                      ("Forecast of a new run", found["forecasts"])):
    if not rows:
      continue
    cells = [[title, "median", "50 %", "90 %", "came to", ""]]
    for row in rows:
      said = [] if row["is_informative"] else ["uninformative"]
      if "is_inside" in row:
        said.insert(0, "inside 90 %" if row["is_inside"] else "outside 90 %")
      where = ", ".join(f"{x}={row[x]:g}" for x in found["x"])
      cells.append([where, number(row["median"]), interval(*row["interval_50"]),
                    interval(*row["interval_90"]), number(row.get("y")), ", ".join(said)])
    lines += ["", *table(cells)]
  return lines


def _comparison(found: Mapping[str, Any]) -> list[str]:
  cells = [["law", "next size, error", "a size left out, error", "residuals"]]
  for row in found["comparison"]:
    cells.append([row["law"], *(
        percent(row[kind]["rms_log_error_shared"]) for kind in ("rolling", "leave_one_size_out")),
        percent(row["rms_log_residual"])])
  return ["", "Laws by error on sizes that they did not see (RMS of logs, best first):",
          *table(cells)]


def coverage(count: int, delta: float, seed: int, level: float) -> dict[str, Any]:
  """Simulates every scenario, printing its row of docs/scaling.md as it ends."""
  names = ["profile", "student", "studentised", "percentile", "bca"]
  print(f"| ladders of 3 seeds, nominal {100 * level:g} % | new run | exponent: default | t | "
        "studentised | percentile | BCa |")
  print("|---" * (len(names) + 2) + "|")

  def tell(row: Mapping[str, Any]) -> None:
    shares = [f"{100 * row['coverage'][name]:.1f}" for name in ("new_run", *names)]
    print(f"| {row['scenario']['name']} | " + " | ".join(shares) + " |", flush=True)

  return {"rows": simulate.study(count, delta, seed, level, log=tell)}


def number(value: float | None) -> str:
  """Writes a number in four digits; nothing for none."""
  return "" if value is None else f"{value:.4g}"


def interval(low: float | None, high: float | None) -> str:
  """Writes an interval; "none" without any end."""
  if low is None and high is None:
    return "none"
  return f"[{'-' if low is None else number(low)}, {'-' if high is None else number(high)}]"


def percent(value: float) -> str:
  """Writes an error in percent; nothing where none could be found."""
  if not math.isfinite(value):
    return "-" if math.isnan(value) else "no forecast"
  return f"{100 * value:.3g} %"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
  """Aligns columns."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(
      row, widths, strict=True)).rstrip() for row in rows]
