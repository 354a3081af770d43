"""Fits of one law to one set of points: starts by variable projection, then every start's end.

Over a grid of the parameters that bend the law, the others are solved for; the best of these begin
the fits.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from of_jax.scaling.jets import Floats, Jet
from of_jax.scaling.law import Law
from of_jax.scaling.solve import Data, Ends, derivatives, loss_of, residuals_of, solve

_EXPONENTS = np.array([-3, -2, -1.5, -1, -.75, -.5, -.35, -.25, -.15, -.07,
                       .07, .15, .25, .35, .5, .75, 1, 1.5, 2, 3])
_GRID, STARTS = 2000, 16


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law fitted to points.

  Attributes:
    law, data, delta: what was fitted to what, and how.
    parameters: at the lowest loss, [P].
    loss: Huber's there.
    ends: where every start ended, [S, P] with losses; the lowest is the fit.
  """

  law: Law
  data: Data
  delta: float
  parameters: Floats
  loss: float
  ends: Ends

  @property
  def residuals(self) -> Floats:
    """Log of the law over the points, in units of each point's relative noise, [n]."""
    found: Floats = residuals_of(self.law.formula, self.parameters[None], self.data)[0]
    return found

  @property
  def degrees(self) -> int:
    """Points less parameters."""
    return int(self.data.weights.sum()) - len(self.parameters)

  @property
  def scale(self) -> float:
    """Standard deviation of a point of noise 1, by n - p degrees."""
    return float(np.sqrt((self.data.weights * self.residuals ** 2).sum() / self.degrees))

  @property
  def jacobian(self) -> Floats:
    """Derivatives of the residuals at the fit, [n, P], logarithmic where the law is."""
    found: Floats = derivatives(
        self.law.formula, self.law.is_log, self.parameters[None], self.data)[1][0]
    return found


def fit(law: Law, data: Data, delta: float) -> Fit:
  """Fits from every start. The loss is infinite where no start is usable."""
  begun = starts(law, data, delta)
  ends = solve(law.formula, law.is_log, begun, data, delta)
  best = int(np.argmin(ends.loss))
  polished = solve(law.formula, law.is_log, ends.parameters[best:best + 1], data, delta,
                   tolerance=1e-20, polish=True)
  if polished.loss[0] <= ends.loss[best]:
    ends.parameters[best], ends.loss[best] = polished.parameters[0], polished.loss[0]
    ends.converged[best] |= polished.converged[0]
  return Fit(law, data, delta, ends.parameters[best], float(ends.loss[best]), ends)


def fit_all(law: Law, parts: Sequence[Data], delta: float) -> list[Fit]:
  """Fits data of one design, all at once, without the last polish."""
  begun = [starts(law, data, delta) for data in parts]
  count = len(begun[0])
  rows = np.repeat(np.arange(len(parts)), count)
  data = Data(parts[0].columns, *(np.stack([getattr(part, name) for part in parts])
                                  for name in ("log_y", "noise", "weights")))
  ends = solve(law.formula, law.is_log, np.concatenate(begun), data.rows(rows), delta)
  result = []
  for k, part in enumerate(parts):
    own = slice(k * count, (k + 1) * count)
    one = Ends(ends.parameters[own], ends.loss[own], ends.converged[own])
    best = int(np.argmin(one.loss))
    result.append(Fit(law, part, delta, one.parameters[best], float(one.loss[best]), one))
  return result


def starts(law: Law, data: Data, delta: float) -> Floats:
  """Parameters [S, P] to begin with, the most promising first."""
  bent = grid(law, data)
  found = project(law, data, bent)
  losses = loss_of(residuals_of(law.formula, found, data), delta, data.weights)
  order = np.argsort(losses, kind="stable")[:STARTS]
  return found[order]


def grid(law: Law, data: Data) -> Floats:
  """Values [G, P] of the parameters in which the law is not linear; the others are 1."""
  axes = []
  spans = np.concatenate([np.abs(np.unique(data.columns[name]))
                          for name in law.formula.variables])
  spans = spans[spans > 0]
  places = np.unique(np.quantile(spans, np.linspace(0, 1, 11))) if spans.size else np.ones(1)
  for name, linear in zip(law.parameters, law.linear, strict=True):
    if linear:
      axes.append(np.ones(1))
    elif name in law.formula.exponents:
      axes.append(_EXPONENTS)
    elif name in law.formula.rates:
      rates = np.geomspace(0.03, 3, 7) / np.median(places)
      axes.append(np.concatenate([-rates[::-1], rates, _EXPONENTS]))
    else:
      axes.append(np.unique(np.concatenate([places, np.logspace(-12, 12, 25)])))
  total = int(np.prod([axis.size for axis in axes], dtype=np.float64))
  if total <= _GRID:
    return np.array(list(itertools.product(*axes)))
  rng = np.random.default_rng(0)
  return np.stack([rng.choice(axis, 2 * _GRID) for axis in axes], 1)


def project(law: Law, data: Data, bent: Floats) -> Floats:
  """Solves for the linear parameters, by least squares on relative residuals, at each of `bent`."""
  which = np.flatnonzero(law.linear)
  if not which.size:
    return bent
  zero = bent.copy()
  zero[:, which] = 0
  jets = {name: Jet(zero[:, i, None], {i: np.ones((len(zero), 1))} if law.linear[i] else {})
          for i, name in enumerate(law.parameters)}
  found = law.formula.jet(jets, data.columns)
  shape = (len(bent), data.log_y.size)
  over = np.exp(-data.log_y) / data.noise * np.sqrt(data.weights)
  rest = np.sqrt(data.weights) / data.noise - np.broadcast_to(found.value, shape) * over
  none = np.zeros(shape)
  basis = np.stack([np.broadcast_to(found.first.get(int(i), none), shape) * over
                    for i in which], -1)
  usable = np.asarray(np.isfinite(basis).all((1, 2)) & np.isfinite(rest).all(1))
  basis, rest = np.where(usable[:, None, None], basis, 0), np.where(usable[:, None], rest, 0)
  with np.errstate(over="ignore"):
    size = np.sqrt((basis ** 2).sum(1, keepdims=True))
  size = np.where((size > 0) & np.isfinite(size), size, 1)
  unit = basis / size
  solved = np.matmul(np.linalg.pinv(unit, rcond=1e-12), rest[..., None])[..., 0] / size[:, 0]
  result = bent.copy()
  result[:, which] = np.where(usable[:, None], solved, np.nan)
  return result
