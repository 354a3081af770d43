"""Noise between runs that differ in seed alone, and whether it grows with size.

A trend of the standard deviation as size^growth is looked for in the spread of runs of one size,
which no law enters; without repeated runs, in the residuals of a fit. It is modelled where a test
finds it. The test's threshold is simulated for the design, since few runs are far from chi-square.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from of_jax.scaling.jets import Floats

PRIOR = 0.5
_GROWTHS = np.linspace(-2, 3, 101)
_DRAWS = 4000


@dataclasses.dataclass(frozen=True)
class Noise:
  """A way to find how noise changes with size, for one design.

  Attributes:
    log_size: of each point, [n].
    group: index of the points that share all variables, [n].
    degrees: of the spread of each group, [G].
    mode: "auto" models a trend that the test finds, "constant" none, "growing" always one.
    unreplicated: whether no two runs share all variables; then residuals are used.
  """

  log_size: Floats
  group: npt.NDArray[np.int64]
  degrees: Floats
  mode: str
  unreplicated: bool

  def growth(self, log_y: Floats, residuals: Floats | None = None) -> tuple[Floats, Floats]:
    """Estimates the exponent of the trend, and its p value, for samples [R, n]: [R] each.

    The exponent is 0 where `mode` says so or the test finds none.
    """
    spread, u, degrees = self._spread(log_y, residuals)
    if not self.can_see:
      return np.zeros(len(log_y)), np.ones(len(log_y))
    growth, ratio = _likeliest(spread, u, degrees)
    null = _null(tuple(u), tuple(degrees))
    p = 1 - np.searchsorted(null, ratio) / null.size
    if self.mode == "constant" or (self.mode == "auto" and self.unreplicated):
      return np.zeros(len(log_y)), p
    if self.mode == "auto":
      growth, _ = _likeliest(spread, u, degrees, PRIOR)
    return growth, p

  @property
  def can_see(self) -> bool:
    """Whether runs are enough to look for a trend: two sizes with a spread, and four degrees."""
    sizes = self.group_sizes[self.degrees > 0]
    return bool(np.unique(sizes).size >= 2 and self.degrees.sum() >= 4)

  @property
  def group_sizes(self) -> Floats:
    """Logarithm of the size of each group."""
    sizes = np.zeros(self.degrees.size)
    sizes[self.group] = self.log_size
    return sizes

  def relative(self, growth: Floats, log_size: Floats | None = None) -> Floats:
    """Standard deviation at sizes, of geometric mean 1 over the design's points: [R, n]."""
    at = self.log_size if log_size is None else log_size
    result: Floats = np.exp(growth[:, None] * (at - self.log_size.mean()))
    return result

  def _spread(self, log_y: Floats, residuals: Floats | None) -> tuple[Floats, Floats, Floats]:
    if self.unreplicated:
      values = np.zeros_like(log_y) if residuals is None else residuals
      spread = np.maximum(values ** 2, 1e-300)
    else:
      means = np.stack([log_y[:, self.group == g].mean(1) for g in range(self.degrees.size)], 1)
      squares = (log_y - means[:, self.group]) ** 2
      spread = np.stack([squares[:, self.group == g].sum(1) / max(nu, 1)
                         for g, nu in enumerate(self.degrees)], 1)
    seen = self.degrees > 0
    u = self.group_sizes[seen]
    return spread[:, seen], u - np.average(u, weights=self.degrees[seen]) if u.size else u, (
        self.degrees[seen])


def of_design(columns: Mapping[str, Floats], size: str, mode: str, parameters: int) -> Noise:
  """Makes the noise model of a design; `parameters` is how many the law has."""
  table = np.stack([np.asarray(columns[name], np.float64) for name in sorted(columns)], 1)
  _, group = np.unique(table, axis=0, return_inverse=True)
  group = group.reshape(-1)
  counts = np.bincount(group).astype(np.float64)
  unreplicated = bool(counts.max() == 1)
  n = len(group)
  degrees = np.full(n, max(n - parameters, 0) / n) if unreplicated else counts - 1
  if unreplicated:
    group = np.arange(n)
  positive = np.asarray(columns[size], np.float64)
  # A size of zero or below has no logarithm, and then no trend is looked for.
  log_size = np.log(positive) if (positive > 0).all() else np.zeros(n)
  return Noise(log_size, group, degrees, mode, unreplicated)


def _likeliest(spread: Floats, u: Floats, degrees: Floats, prior: float = np.inf
               ) -> tuple[Floats, Floats]:
  """The likeliest growth [R] for spreads [R, G], and the likelihood ratio against none."""
  weights = degrees * np.exp(-2 * _GROWTHS[:, None] * u)
  total = degrees.sum()
  # Runs that agree to the last digit say nothing of a trend.
  mean = np.maximum(spread @ weights.T / total, 1e-300)
  likelihood = -0.5 * (total * np.log(mean) + 2 * _GROWTHS * (degrees * u).sum()
                       + (_GROWTHS / prior) ** 2)
  best = likelihood.argmax(1)
  none = likelihood[:, np.abs(_GROWTHS).argmin()]
  return _GROWTHS[best], 2 * (likelihood.max(1) - none)


@functools.lru_cache(maxsize=64)
def _null(u: tuple[float, ...], degrees: tuple[float, ...]) -> Floats:
  """Likelihood ratios where noise has no trend, sorted."""
  rng = np.random.default_rng(0)
  nu = np.array(degrees)
  spread = rng.gamma(nu / 2, 2 / nu, (_DRAWS, nu.size))
  return np.sort(_likeliest(spread, np.array(u), nu)[1])
