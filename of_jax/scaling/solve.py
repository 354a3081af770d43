"""Fits of a law to points, many at once: Huber's loss on log residuals, brought to its minimum.

Every problem of a batch has its own start, data, weights and, if wanted, parameters held fixed. The
method is Newton's on Huber's loss with a trust region, by continuation in delta: from a loss that
is quadratic at the residuals' size down to the one asked for. Small deltas make nearly least
absolute deviations, where a quasi-Newton method stops short of the minimum.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from of_jax.scaling.formula import Formula
from of_jax.scaling.jets import Floats, Jet

Bools = npt.NDArray[np.bool_]
_STEPS = 150
# From one delta to the next, and the share of the loss that a step may still promise at each.
_NARROWER, _ROUGHLY = 0.25, 1e-4
# Of the weight that outliers have in the curvature: enough that it is never singular for them.
_OUTLIERS = 1e-3


@dataclasses.dataclass(frozen=True)
class Data:
  """Points to fit. [n] arrays are shared by all problems of a batch, [R, n] are each one's own.

  Attributes:
    columns: variables by name.
    log_y: natural logarithm of the target.
    noise: each point's standard deviation of log y, relative to the others; residuals are divided
      by it.
    weights: how often each point counts.
  """

  columns: Mapping[str, Floats]
  log_y: Floats
  noise: Floats
  weights: Floats

  def rows(self, which: npt.NDArray[np.int64]) -> "Data":
    """Takes some problems of a batch."""
    def of(x: Floats) -> Floats:
      return x[which] if x.ndim > 1 else x
    return Data({name: of(x) for name, x in self.columns.items()}, of(self.log_y),
                of(self.noise), of(self.weights))


@dataclasses.dataclass(frozen=True)
class Ends:
  """Parameters [R, P] where the fits ended, their losses [R] and whether each is at a minimum."""

  parameters: Floats
  loss: Floats
  converged: Bools


def loss_of(residuals: Floats, delta: float | Floats, weights: Floats) -> Floats:
  """Sums Huber's loss over the last axis; infinite where a residual is not finite."""
  size = np.abs(residuals)
  delta = np.asarray(delta)[..., None]
  with np.errstate(invalid="ignore", over="ignore"):
    inside = np.minimum(size, delta)
    each = np.where(np.isinf(delta), 0.5 * size ** 2, inside * (size - 0.5 * inside))
    total = np.where(weights == 0, 0, weights * each).sum(-1)
  return np.where(np.isfinite(total), total, np.inf)


def residuals_of(formula: Formula, parameters: Floats, data: Data) -> Floats:
  """Residuals [R, n] of log y over the noise; not finite where the law is not positive."""
  with np.errstate(all="ignore"):
    return (np.log(formula.value(parameters, data.columns)) - data.log_y) / data.noise


def derivatives(formula: Formula, is_log: Bools, parameters: Floats, data: Data,
                second: bool = False) -> tuple[Floats, Floats, Floats | None]:
  """Residuals [R, n], their derivatives [R, n, P] and, if wanted, second ones [R, n, P, P].

  Derivatives are by the parameter, or by the logarithm of its size where `is_log`.
  """
  jets = {}
  for i, name in enumerate(formula.parameters):
    value = parameters[:, i, None]
    slope = value if is_log[i] else np.ones_like(value)
    jets[name] = Jet(value, {i: slope}, {(i, i): slope} if second and is_log[i] else {}, second)
  with np.errstate(all="ignore"):
    found = formula.jet(jets, data.columns).log()
    shape = (len(parameters), data.log_y.shape[-1])
    residuals = (np.broadcast_to(found.value, shape) - data.log_y) / data.noise
    absent = data.weights == 0
    residuals = np.where(absent, 0, residuals)
    count = len(formula.parameters)
    first = np.zeros((*shape, count))
    for i, derivative in found.first.items():
      first[..., i] = np.where(absent, 0, derivative / data.noise)
    if not second:
      return residuals, first, None
    both = np.zeros((*shape, count, count))
    for (i, j), derivative in found.pairs.items():
      both[..., i, j] = both[..., j, i] = derivative / data.noise
  return residuals, first, both


def solve(formula: Formula, is_log: Bools, start: Floats, data: Data, delta: float,
          fixed: Bools | None = None, tolerance: float = 1e-14, polish: bool = False) -> Ends:
  """Minimises Huber's loss from every start [R, P].

  Args:
    formula: the law.
    is_log: parameters that keep their sign, and move on a logarithmic scale.
    start: where to begin, one row a problem.
    data: points; [R, n] arrays have a row a problem.
    delta: Huber's, in units of log y; infinite for least squares.
    fixed: parameters that stay as they are, [P] or [R, P].
    tolerance: a fit has ended where the next step promises less than this share of its loss.
    polish: use the law's own second derivatives too.
  """
  held = np.broadcast_to(False if fixed is None else fixed, start.shape)
  state = _State(formula, is_log, start, data, delta, held, tolerance, polish)
  for _ in range(_STEPS):
    if not state.active.size:
      break
    state.step()
  return Ends(state.parameters, loss_of(state.residuals, delta, data.weights), state.converged)


class _State:
  """A batch of fits on their way. Arrays have a row a problem; `active` lists those under way."""

  def __init__(self, formula: Formula, is_log: Bools, start: Floats, data: Data, delta: float,
               held: Bools, tolerance: float, polish: bool):
    self.formula, self.is_log, self.data, self.held = formula, is_log, data, held
    self.final, self.tolerance, self.polish = delta, tolerance, polish
    self.parameters = np.array(start, np.float64)
    self.residuals, self.first, self.both = derivatives(
        formula, is_log, self.parameters, data, polish)
    size = np.abs(np.nan_to_num(self.residuals, nan=np.inf))
    if delta == np.inf or polish:
      self.delta = np.full(len(start), delta)
    else:
      self.delta = np.maximum(delta, 2 * np.median(size, axis=-1))
    self.damping = np.full(len(start), 1e-3)
    self.converged = np.zeros(len(start), np.bool_)
    self.loss = loss_of(self.residuals, self.delta, data.weights)
    usable = np.isfinite(self.loss) & np.isfinite(self.first).all((1, 2))
    self.active = np.flatnonzero(usable)

  def step(self) -> None:
    """Takes one step of every fit under way, or refuses it and damps the next more."""
    at = self.active
    slope, curvature, scale = self._expand(at)
    move = _solved(curvature, slope, self.damping[at], self.polish)
    promised = 0.5 * np.abs((move * slope).sum(-1))
    move *= scale
    # No step goes further than the logarithm of the sizes can be trusted for.
    move /= np.maximum(1, np.abs(np.where(self.is_log, move, 0)).max(-1, keepdims=True) / 3)
    now = self.parameters[at]
    with np.errstate(over="ignore", invalid="ignore"):
      tried = np.where(self.is_log, now * np.exp(move), now + move)
    data = self.data.rows(at)
    residuals, first, both = derivatives(self.formula, self.is_log, tried, data, self.polish)
    loss = loss_of(residuals, self.delta[at], data.weights)
    better = (loss < self.loss[at]) & np.isfinite(first).all((1, 2))
    good = at[better]
    self.parameters[good], self.residuals[good] = tried[better], residuals[better]
    self.first[good], self.loss[good] = first[better], loss[better]
    if self.both is not None and both is not None:
      self.both[good] = both[better]
    self.damping[at] = np.where(better, np.maximum(self.damping[at] / 8, 1e-12),
                                self.damping[at] * 5)
    self._judge(at, promised)

  def _judge(self, at: npt.NDArray[np.int64], promised: Floats) -> None:
    """Ends fits that cannot get better, and goes on to a narrower delta where one is reached."""
    is_last = self.delta[at] <= self.final
    floor = np.finfo(np.float64).eps ** 2 * self.data.log_y.shape[-1]
    little = promised <= np.where(is_last, self.tolerance, _ROUGHLY) * self.loss[at] + floor
    # Damped so much that rounding decides.
    stuck = self.damping[at] > 1e6
    near = promised <= 1e-9 * self.loss[at] + floor
    self.converged[at] = is_last & (little | (stuck & near))
    narrow = at[~is_last & (little | stuck)]
    self.delta[narrow] = np.maximum(self.delta[narrow] * _NARROWER, self.final)
    self.damping[narrow] = 1e-3
    self.loss[narrow] = loss_of(
        self.residuals[narrow], self.delta[narrow], self.data.rows(narrow).weights)
    self.active = at[~(is_last & (little | stuck))]

  def _expand(self, at: npt.NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Slope [R, P] and curvature [R, P, P] in units in which each parameter moves alike, and
    those units [R, P]."""
    residuals, first = self.residuals[at], self.first[at]
    weights = self.data.rows(at).weights
    size = np.abs(residuals)
    delta = self.delta[at, None]
    inside = size <= delta
    with np.errstate(divide="ignore", invalid="ignore"):
      reweighted = np.where(inside, 1.0, delta / size) * weights
      pull = np.where(inside, residuals, np.sign(residuals) * delta) * weights
    slope = np.matmul(pull[:, None], first)[:, 0]
    weighted = np.where(inside, weights, _OUTLIERS * reweighted)
    curvature = np.matmul((first * weighted[..., None]).swapaxes(1, 2), first)
    diagonal = (first ** 2 * reweighted[..., None]).sum(1)
    if self.both is not None:
      curvature = curvature + np.einsum("rn,rnij->rij", pull, self.both[at])
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1)), 0)
    scale = np.where(self.held[at], 0, scale)
    return slope * scale, curvature * scale[:, :, None] * scale[:, None, :], scale


def _solved(curvature: Floats, slope: Floats, damping: Floats, may_be_indefinite: bool) -> Floats:
  """The damped Newton step; eigenvalues below zero are turned upwards."""
  eye = np.eye(slope.shape[-1])
  if not may_be_indefinite:
    # What is held, or has no effect, has a zero row and slope, and does not move.
    lifted = curvature + (damping[:, None, None] + 1e-13) * eye
    return np.asarray(-np.linalg.solve(lifted, slope[..., None])[..., 0], np.float64)
  values, vectors = np.linalg.eigh(curvature)
  along = np.matmul(slope[:, None], vectors)[:, 0]
  along = along / np.maximum(np.abs(values) + damping[:, None], 1e-13)
  return np.asarray(-np.matmul(vectors, along[..., None])[..., 0], np.float64)
