"""Fits a law of how a number grows with size, with intervals, and forecasts new runs.

  python -m experiments.fit --root=DIR --y=peak_kurtosis --law="a * width^b + c" --out=DIR
  python -m experiments.fit --csv=FILE --y=loss --law=chinchilla --out=DIR
  python -m experiments.fit --coverage=1000
  python -m experiments.fit --alarms=1000

DIR gets fit.json and a figure. Laws by name: constant, power, power_offset, chinchilla, saturating,
broken; or a formula of variables, and parameters that are letters or Greek letters' names.
--coverage fits nothing: it simulates ladders, and counts how often intervals hold the truth;
--alarms counts how often runs are said to leave their ladder.
docs/scaling.md says what the intervals are.
"""

import math
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from of_jax.commands import cli
from of_jax.errors import UserError

if TYPE_CHECKING:
  from of_jax.scaling.table import Table

# Sets of data that are drawn.
_MOST = 1_000_000
_ROOT = flags.DEFINE_string("root", "", "a folder of runs, as a study's")
_CSV = flags.DEFINE_string("csv", "", "in place of --root, a CSV file whose first line names its "
                           "columns; runs with 1 in a column diverged are counted, not fitted")
_Y = flags.DEFINE_string("y", "", "what is fitted: a column; or of runs final_loss, a metric as "
                         "peak_kurtosis, last_mmr or mean_kurtosis, quantisation_loss, or a number "
                         "in a JSON file, as measure.perplexity")
_LAW = flags.DEFINE_string("law", "", "a law's name, or a formula as a * width^b + c")
_X = flags.DEFINE_list("x", [], "the variable of a law by name, as width")
_PARAMETERS = flags.DEFINE_list("parameters", [], "names in the formula that are to be fitted, "
                                "beside letters and Greek ones")
_SITE = flags.DEFINE_string("site", "", "of a metric of runs; default resid_pre")
_LAYER = flags.DEFINE_string("layer", "largest", "of a metric: largest, mean, or a layer from 0")
_OVER = flags.DEFINE_enum("over", None, ["peak", "last", "mean"], "of a metric: over the steps")
_EVERY = flags.DEFINE_integer("every", 1, "read logged steps that this divides", lower_bound=1)
_DELTA = flags.DEFINE_float("delta", 1e-3, "of Huber's loss, in log y; inf is least squares")
_SIZE = flags.DEFINE_string("size", "", "the variable by which sizes are held out and noise may "
                            "grow; default the law's first")
_HOLD_OUT = flags.DEFINE_integer("hold_out", 0, "forecast so many of the largest sizes, and do "
                                 "not fit them", lower_bound=0)
_DROP = flags.DEFINE_integer("drop_highest", 0, "leave out the points of so many highest y",
                             lower_bound=0)
_FORECAST = flags.DEFINE_multi_string("forecast", [], "a new run to forecast, as width=2048 or "
                                      "parameters=1e9,tokens=2e10; may be given again")
_LEVEL = flags.DEFINE_float("level", 0.9, "of intervals")
_RESAMPLES = flags.DEFINE_integer("resamples", 1000, "for intervals", lower_bound=99,
                                  upper_bound=_MOST)
_KIND = flags.DEFINE_enum("resampling", "auto", ["auto", "normal", "residuals", "cases"],
                          "what is drawn: normal noise (the default below 40 points), residuals "
                          "over sqrt(1 - leverage), or points (the default from 40)")
_SEED = flags.DEFINE_integer("seed", 0, "of all draws", lower_bound=0)
_NOISE = flags.DEFINE_enum("noise", "auto", ["auto", "constant", "growing"], "whether the noise "
                           "between seeds changes with size: tested, or taken as said")
_SIMULATE = flags.DEFINE_integer("simulate", None, "made sets of data that tell how often each "
                                 "kind of interval holds; default 100 below 40 points, else 0",
                                 lower_bound=0, upper_bound=_MOST)
_COMPARE = flags.DEFINE_list("compare", None, "laws to compare by held-out error; default all "
                             "named ones that apply")
_WIDTH = flags.DEFINE_float("exponent_width", 0.5, "a wider interval of an exponent is said to be "
                            "uninformative")
_RATIO = flags.DEFINE_float("forecast_ratio", 4.0, "likewise of a forecast, upper end over lower")
_COVERAGE = flags.DEFINE_integer("coverage", 0, "simulate so many ladders a scenario instead",
                                 lower_bound=0, upper_bound=_MOST)
_ALARMS = flags.DEFINE_integer("alarms", 0, "count false and true alarms of so many ladders a "
                               "scenario instead", lower_bound=0, upper_bound=_MOST)
flags.DEFINE_string("out", "", "folder for fit.json and the figure")
COVERAGE, ALARMS = "coverage.json", "alarms.json"


def main() -> None:
  """Fits what the command line asks for, prints it and leaves it."""
  _check()
  from of_jax.scaling import figure, report
  from of_jax.scaling.analysis import Options, analyse
  from of_jax.storage.run_directory import write_json
  out = cli.output_folder("out")
  if _ALARMS.value:
    from of_jax.scaling import alarm_simulation
    found = {"rows": alarm_simulation.count(_ALARMS.value, _SEED.value, print)}
  elif _COVERAGE.value:
    found = report.coverage(_COVERAGE.value, _DELTA.value, _SEED.value, _LEVEL.value)
  else:
    found = analyse(_table(), Options(
        _LAW.value, tuple(_X.value), tuple(_PARAMETERS.value), _DELTA.value, _SIZE.value,
        _HOLD_OUT.value, _DROP.value, tuple(map(_design, _FORECAST.value)), _LEVEL.value,
        _RESAMPLES.value, _KIND.value, _SEED.value, _NOISE.value, _SIMULATE.value,
        None if _COMPARE.value is None else tuple(_COMPARE.value), _WIDTH.value, _RATIO.value))
    print(report.text(found))
  if out is None:
    return
  out.mkdir(parents=True, exist_ok=True)
  path = out / (ALARMS if _ALARMS.value else COVERAGE if _COVERAGE.value else "fit.json")
  write_json(path, found)
  if not _COVERAGE.value and not _ALARMS.value:
    figure.save(found, out)
  print(path)


def _table() -> "Table":
  """Reads the points."""
  from of_jax.scaling import targets, variables
  from of_jax.scaling.table import read_csv
  if _CSV.value:
    return read_csv(_CSV.value, _Y.value)
  target = targets.parse(_Y.value, _SITE.value, _LAYER.value, _OVER.value or "", _EVERY.value)
  root = pathlib.Path(_ROOT.value).expanduser()
  if not root.is_dir():
    raise UserError(f"--root={_ROOT.value}: no such folder")
  return variables.read_root(root, target)


def _check() -> None:
  """Checks flags before anything is read."""
  if not 0.01 <= _LEVEL.value <= 0.999:
    raise UserError(f"--level={_LEVEL.value:.17g}: must lie between 0.01 and 0.999, as 0.9")
  if not _DELTA.value > 0:
    raise UserError(f"--delta={_DELTA.value:g}: must be above 0; inf is least squares")
  for size in (_WIDTH, _RATIO):
    if not size.value > 0:
      raise UserError(f"--{size.name}={size.value:g}: must be above 0")
  if _COVERAGE.value and _ALARMS.value:
    raise UserError("--coverage and --alarms: one at a time")
  if _COVERAGE.value or _ALARMS.value:
    for flag in (_ROOT, _CSV, _Y, _LAW):
      if flag.value:
        name = "alarms" if _ALARMS.value else "coverage"
        raise UserError(f"--{name}: makes its own data, leave out --{flag.name}")
    return
  if bool(_ROOT.value) == bool(_CSV.value):
    raise UserError("--root or --csv: exactly one is needed; see --help")
  for flag in (_Y, _LAW):
    if not flag.value:
      raise UserError(f"--{flag.name}: needs a value; see --help")
  if _CSV.value:
    for name in ("site", "layer", "over", "every"):
      if flags.FLAGS[name].present:
        raise UserError(f"--{name}: is of runs, a column of --csv has none")


def _design(text: str) -> dict[str, float]:
  """Reads `width=2048,depth=4`."""
  found = {}
  for part in text.split(","):
    name, _, value = part.partition("=")
    try:
      found[name.strip()] = float(value)
    except ValueError:
      raise UserError(f"--forecast={text}: {part} is not VARIABLE=NUMBER") from None
    if not math.isfinite(found[name.strip()]):
      raise UserError(f"--forecast={text}: {part} is not finite")
  return found


if __name__ == "__main__":
  cli.run(main)
