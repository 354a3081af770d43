"""Resamples of a fit, all fitted at once, and the statistics that intervals are made of.

A fit's uncertainty is told by ratios: how much the loss rises, in units of the loss a degree of
freedom, if a parameter is held at a value or a new run is added with a value. For least squares and
a law that is linear in its logarithm it is the square of Student's t with n - p degrees; for
Huber's loss and bent laws its distribution is simulated, by resampling.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from of_jax.scaling.jets import Floats
from of_jax.scaling.noise import Noise
from of_jax.scaling.solve import Bools, Data, Ends, derivatives, solve
from of_jax.scaling.starts import Fit

_TOLERANCE = 1e-6
# Fewer points than these do not tell the shape of their noise, which is then taken as normal.
ENOUGH_POINTS = 40
KINDS = ("auto", "normal", "residuals", "cases")


@dataclasses.dataclass(frozen=True)
class Resamples:
  """Fits of resampled data.

  Attributes:
    kind: of KINDS, but auto.
    parameters: where each ended, [R, P].
    ratios: rise of the loss with each parameter held at the original fit's, [R, P].
    new_ratios: rise of the loss with a new run added, one of each design asked for, [R, F].
    students: (estimate - original) / its standard error, [R, P], in the units of the fit.
  """

  kind: str
  parameters: Floats
  ratios: Floats
  new_ratios: Floats
  students: Floats


def kind_of(fit: Fit, kind: str) -> str:
  """Chooses how to resample: cases where points are many, else normal noise."""
  if kind != "auto":
    return kind
  return "cases" if fit.data.log_y.size >= ENOUGH_POINTS else "normal"


def leverages(fit: Fit) -> Floats:
  """Diagonal of the hat matrix of the law's linear form at the fit, [n]."""
  q, _ = np.linalg.qr(fit.jacobian)
  result: Floats = np.minimum((q ** 2).sum(1), 0.99)
  return result


def noises(fit: Fit, kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
  """Draws noise in units of a point's relative noise."""
  if kind == "normal":
    return fit.scale * rng.standard_normal(shape)
  residuals = fit.residuals / np.sqrt(1 - leverages(fit))
  return rng.choice(residuals - residuals.mean(), shape)


def resample(fit: Fit, noise: Noise, kind: str, count: int, rng: np.random.Generator,
             new: Sequence[Mapping[str, Floats]] = (), new_log_size: Sequence[float] = ()
             ) -> Resamples:
  """Resamples one fit, see `resample_all`."""
  return resample_all([fit], noise, kind, count, [rng], new, new_log_size)[0]


def resample_all(fits: Sequence[Fit], noise: Noise, kind: str, count: int,
                 rngs: Sequence[np.random.Generator], new: Sequence[Mapping[str, Floats]] = (),
                 new_log_size: Sequence[float] = (), which: Sequence[int] | None = None
                 ) -> list[Resamples]:
  """Resamples fits of one law to data of one design, `count` times each.

  Args:
    fits: the originals.
    noise: how the noise's trend is estimated, again in each resample.
    kind: "normal" draws normal noise, "residuals" those of the fit over sqrt(1 - leverage), both
      about the fitted law; "cases" draws points.
    count: resamples.
    rngs: source of the draws of each fit.
    new: designs of new runs, each a mapping of a variable to one value [1].
    new_log_size: logarithm of the size of each.
    which: parameters whose ratios are asked for, all by default; the others' are NaN.
  """
  law, delta, degrees = fits[0].law, fits[0].delta, fits[0].degrees
  draws = [_draw(fit, noise, kind, count, rng, new, new_log_size)
           for fit, rng in zip(fits, rngs, strict=True)]
  data = stacked([draw.data for draw in draws], count)
  start = np.repeat([fit.parameters for fit in fits], count, axis=0)

  def solved(points: Data, held: Bools | None = None) -> Ends:
    return solve(law.formula, law.is_log, start, points, delta, held, _TOLERANCE)

  ends = solved(data)
  ratios = np.full(start.shape, np.nan)
  for i in range(start.shape[1]) if which is None else which:
    held = np.arange(start.shape[1]) == i
    ratios[:, i] = ratio(solved(data, held).loss, ends.loss, degrees)
  added = np.empty((len(start), len(new)))
  for f, columns in enumerate(new):
    both = with_new(data, columns, np.concatenate([draw.log_new[f] for draw in draws]),
                    np.concatenate([draw.new_noise[f] for draw in draws]))
    added[:, f] = ratio(solved(both).loss, ends.loss, degrees)
  result = []
  for k, (fit, draw) in enumerate(zip(fits, draws, strict=True)):
    own = slice(k * count, (k + 1) * count)
    result.append(Resamples(kind, ends.parameters[own], ratios[own], added[own],
                            _students(fit, ends.parameters[own], draw.data)))
  return result


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """Data of a fit's resamples, and each new run's log y and relative noise, [R, 1] a design."""

  data: Data
  log_new: list[Floats]
  new_noise: list[Floats]


def _draw(fit: Fit, noise: Noise, kind: str, count: int, rng: np.random.Generator,
          new: Sequence[Mapping[str, Floats]], new_log_size: Sequence[float]) -> _Drawn:
  law, data = fit.law, fit.data
  n, own = data.log_y.size, _growth_of(data.noise, noise)
  fitted = np.log(law.formula.value(fit.parameters, data.columns))
  if kind == "cases":
    weights = rng.multinomial(n, np.full(n, 1 / n), count).astype(np.float64)
    drawn = Data(data.columns, data.log_y, data.noise, weights)
    growth = np.full(count, own)
  else:
    log_y = fitted + noises(fit, kind, rng, (count, n)) * data.noise
    growth, _ = noise.growth(log_y, log_y - fitted)
    drawn = Data(data.columns, log_y, noise.relative(growth), np.ones(n))
  log_new, new_noise = [], []
  for columns, log_size in zip(new, new_log_size, strict=True):
    at = np.array([log_size])
    log_new.append(np.log(law.formula.value(fit.parameters, columns))
                   + noises(fit, kind, rng, (count, 1)) * noise.relative(np.array([own]), at))
    new_noise.append(noise.relative(growth, at))
  return _Drawn(drawn, log_new, new_noise)


def stacked(parts: Sequence[Data], count: int) -> Data:
  """Puts batches of `count` problems of one design below each other."""
  def rows(values: Floats) -> Floats:
    return np.broadcast_to(values, (count, values.shape[-1]))
  return Data(parts[0].columns, *(
      np.concatenate([rows(getattr(part, name)) for part in parts])
      for name in ("log_y", "noise", "weights")))


def with_new(data: Data, columns: Mapping[str, Floats], log_y: Floats, noise: Floats) -> Data:
  """Adds one new run to each problem: log_y and noise are [R, 1]."""
  count = len(log_y)

  def joined(old: Floats, new: Floats) -> Floats:
    return np.concatenate([np.broadcast_to(old, (count, old.shape[-1])),
                           np.broadcast_to(new, (count, 1))], 1)

  return Data({name: np.concatenate([values, columns[name]])
               for name, values in data.columns.items() if name in columns},
              joined(data.log_y, log_y), joined(data.noise, noise),
              joined(data.weights, np.ones(1)))


def ratio(raised: Floats, least: Floats, degrees: int) -> Floats:
  """Rise of the loss over the loss a degree of freedom; never below 0, infinite without an end."""
  with np.errstate(divide="ignore", invalid="ignore"):
    found = np.maximum(raised - least, 0) / least * degrees
  return np.where(np.isfinite(found), found, np.inf)


def standard_errors(fit: Fit, parameters: Floats, data: Data) -> Floats:
  """Standard errors [R, P] from the law's linear form, in the units in which it is fitted."""
  law = fit.law
  residuals, first, _ = derivatives(law.formula, law.is_log, parameters, data)
  weights = np.broadcast_to(data.weights, residuals.shape)
  gram = np.matmul((first * weights[..., None]).swapaxes(1, 2), first)
  variance = (weights * residuals ** 2).sum(1) / fit.degrees
  inverse = np.linalg.pinv(gram, hermitian=True)
  errors: Floats = np.sqrt(
      np.maximum(np.diagonal(inverse, axis1=1, axis2=2), 0) * variance[:, None])
  return errors


def inner(fit: Fit, parameters: Floats) -> Floats:
  """Parameters in the units in which they are fitted."""
  with np.errstate(divide="ignore"):
    return np.where(fit.law.is_log, np.log(np.abs(parameters)), parameters)


def _students(fit: Fit, parameters: Floats, data: Data) -> Floats:
  moved = inner(fit, parameters) - inner(fit, fit.parameters)
  with np.errstate(divide="ignore", invalid="ignore"):
    found = moved / standard_errors(fit, parameters, data)
  return np.where(np.isfinite(found), found, 0)


def _growth_of(relative: Floats, noise: Noise) -> float:
  """Finds the trend that a fit's noise has been given."""
  u = noise.log_size - noise.log_size.mean()
  return float((np.log(relative) * u).sum() / (u * u).sum()) if u.any() else 0.0


def jackknife(fits: Sequence[Fit]) -> list[Floats]:
  """Fits of each without each point in turn, [n, P]; of one law and design."""
  n, law = fits[0].data.log_y.size, fits[0].law
  parts = [Data(fit.data.columns, fit.data.log_y, fit.data.noise,
                fit.data.weights * (1 - np.eye(n))) for fit in fits]
  start = np.repeat([fit.parameters for fit in fits], n, axis=0)
  ends = solve(law.formula, law.is_log, start, stacked(parts, n), fits[0].delta,
               tolerance=_TOLERANCE)
  return list(ends.parameters.reshape(len(fits), n, -1))
