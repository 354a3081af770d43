"""Names, axes and formulas of metrics, as figures show them.

Formulas, units and ranges are those of of_jax.config.declared_metrics. Declared here is what only a
figure needs to know of the metrics that every page draws of the residual stream.
"""

import dataclasses
import html
import re
from collections.abc import Mapping

from of_jax.config import declared_metrics
from of_jax.config.declared_metrics import NO_FIRST, Metric

# Two letters and a digit at most, so that names of metrics are none: X_tj, A_t1.
_INDEX = re.compile(r"(?<=[A-Za-z0-9])_([a-z]{1,2}\d?)(?![A-Za-z0-9_])")
_POWER = re.compile(r"\^(\w+)")
_SYMBOLS = {"s2_j": "s2_j the mean over tokens of X_tj^2"}
_WITHOUT_FIRST = "leaving out the first token of every window"


@dataclasses.dataclass(frozen=True)
class Shown:
  """A metric of the stream, as figures show it.

  Attributes:
    name: for people.
    axis: the label of its axis, with its unit or range.
    log: whether the axis is logarithmic.
    largest: whether a stretch of steps, and all layers together, are shown by their largest value,
      in place of the mean.
    note: what a value means, behind the formula.
  """

  name: str
  axis: str
  log: bool
  largest: bool
  note: str = ""


_KURTOSIS = Shown("kurtosis", "kurtosis (1 to width)", log=True, largest=True)
_MMR = Shown("MMR", "max over median (from 1)", log=True, largest=True)
# Metrics of the stream, in the order in which the page offers them.
STREAM: Mapping[str, Shown] = {
    "kurtosis": _KURTOSIS,
    "kurtosis_no_first": dataclasses.replace(_KURTOSIS, name="kurtosis without position 0"),
    "kurtosis_centred": dataclasses.replace(_KURTOSIS, name="kurtosis, centred"),
    "mmr": _MMR,
    "mmr_no_first": dataclasses.replace(_MMR, name="MMR without position 0"),
    "input_correlation": Shown("input correlation", "correlation", log=False, largest=False,
                               note="1 means that all tokens look alike (poor signal propagation)"),
    "rms": Shown("RMS", "root mean square", log=True, largest=False),
}


def base(metric: str) -> str:
  """Strips the suffix of the twin that leaves out position 0 from a metric's id."""
  return metric.removesuffix(NO_FIRST)


def formula(metric: str, own: Mapping[str, Metric] | None = None) -> str:
  """Writes a metric's formula, its symbols and its range, as its family declares them.

  Args:
    metric: its id, perhaps with the suffix of the twin.
    own: metrics of users' files by id; one that is in neither has no formula.
  """
  declared = {**(own or {}), **declared_metrics.metrics()}.get(base(metric))
  words = [] if declared is None else [declared.formula]
  if declared is not None:
    words += [meaning for symbol, meaning in _SYMBOLS.items() if symbol in declared.formula]
    words += [f"range {declared.range}"] if declared.range else []
  if metric != base(metric):
    words.append(_WITHOUT_FIRST)
  words += [STREAM[metric].note] if metric in STREAM else []
  return "; ".join(word for word in words if word)


def as_html(text: str) -> str:
  """Sets a formula's indices and powers, mean_j(s2_j^2), as HTML."""
  return _POWER.sub(r"<sup>\1</sup>", _INDEX.sub(r"<sub>\1</sub>", html.escape(text)))
