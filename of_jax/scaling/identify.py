"""Parameters that the data cannot tell. Enters: a fit. Leaves: a reason for each of them.

Three ways are looked for: directions in which the fit does not change at all, exponents that may be
swapped, and other minima that fit as well but lie outside the interval.
"""

import itertools

import numpy as np

from of_jax.scaling.intervals import Interval, student
from of_jax.scaling.jets import Floats
from of_jax.scaling.resample import inner, ratio
from of_jax.scaling.solve import solve
from of_jax.scaling.starts import Fit, project

_RANK, _SAME, _APART = 1e-7, 1e-6, 1e-3


def flat(fit: Fit) -> dict[str, str]:
  """Names parameters that can move, alone or together, without any change of the fit."""
  jacobian = fit.jacobian * np.sqrt(fit.data.weights)[:, None]
  size = np.sqrt((jacobian ** 2).sum(0))
  found = {}
  for name, own in zip(fit.law.parameters, size, strict=True):
    if not own > 1e-12 * np.nanmax(size):
      found[name] = "changes nothing at the points"
  usable = size > 1e-12 * np.nanmax(size)
  if not usable.any():
    return found
  _, values, directions = np.linalg.svd(jacobian[:, usable] / size[usable], full_matrices=True)
  values = np.concatenate([values, np.zeros(len(directions) - len(values))])
  names = [n for n, u in zip(fit.law.parameters, usable, strict=True) if u]
  for value, direction in zip(values, directions, strict=True):
    if value <= _RANK * values[0]:
      together = [n for n, part in zip(names, direction, strict=True) if abs(part) > 0.01]
      for name in together:
        found[name] = (f"{' and '.join(together)} can move together without changing the fit: "
                       "too few different sizes")
  return found


def swapped(fit: Fit) -> dict[str, str]:
  """Names parameters that change when two exponents change places, with the same loss."""
  law = fit.law
  exponents = [i for i, name in enumerate(law.parameters) if name in law.formula.exponents]
  found: dict[str, str] = {}
  for i, j in itertools.combinations(exponents, 2):
    start = fit.parameters.copy()
    start[[i, j]] = start[[j, i]]
    if abs(start[i] - start[j]) < _APART:
      continue
    start = project(law, fit.data, start[None])
    ends = solve(law.formula, law.is_log, start, fit.data, fit.delta)
    floor = 1e-18 * fit.data.log_y.size
    same = ends.loss[0] <= fit.loss * (1 + _SAME) + floor
    moved = np.abs(inner(fit, ends.parameters[0]) - inner(fit, fit.parameters)) > _APART
    if same and moved[[i, j]].all():
      for name, has_moved in zip(law.parameters, moved, strict=True):
        if has_moved:
          found[name] = (f"{law.parameters[i]} and {law.parameters[j]} may be swapped with the "
                         f"same loss{_tied(fit)}")
  return found


def _tied(fit: Fit) -> str:
  """Says which variables grow together, if any do."""
  names = fit.law.formula.variables
  for a, b in itertools.combinations(names, 2):
    logs = np.log(np.stack([fit.data.columns[a], fit.data.columns[b]]))
    logs -= logs.mean(1, keepdims=True)
    size = (logs ** 2).sum(1)
    if 1 - (logs[0] @ logs[1]) ** 2 / (size[0] * size[1]) < 1e-6:
      return f": {a} and {b} grow together at the points"
  return ""


def elsewhere(fit: Fit, intervals: list[Interval], level: float) -> dict[str, str]:
  """Names parameters for which another minimum fits as well, outside their interval."""
  limit = student(fit.degrees, level) ** 2
  ends = fit.ends
  ratios = ratio(ends.loss, np.asarray(fit.loss), fit.degrees)
  found: dict[str, str] = {}
  for values in ends.parameters[ends.converged & (ratios <= limit)]:
    for name, value, interval in zip(fit.law.parameters, values, intervals, strict=True):
      if not interval.holds(value) and name not in found:
        found[name] = f"{value:.4g} fits as well, at another minimum"
  return found


def unbounded(names: tuple[str, ...], intervals: list[Interval], values: Floats
              ) -> dict[str, str]:
  """Names parameters whose interval has no end on some side."""
  found = {}
  for name, interval, value in zip(names, intervals, values, strict=True):
    sides = [side for side, end in (("below", interval.low), ("above", interval.high))
             if end is None]
    if sides:
      found[name] = f"not bounded {' or '.join(sides)} by these points, at {value:.4g}"
  return found
