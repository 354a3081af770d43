"""Laws: a formula, and what is known of each of its parameters.

Named laws are formulas with the variable left open. How a parameter enters decides how it is
fitted: those in which the law is linear are solved for, the rest are started from a grid.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from of_jax.errors import UserError, nearest
from of_jax.scaling import formula as formulas
from of_jax.scaling.formula import Formula
from of_jax.scaling.jets import Floats, Jet
from of_jax.scaling.solve import Bools

# Name -> (formula with X for the variable, what it says). The break's sharpness is fixed, for few
# sizes never tell it.
NAMED: Mapping[str, tuple[str, str]] = {
    "constant": ("a + 0 * X", "no trend, to compare with"),
    "power": ("a * X^b", "a power of the variable"),
    "power_offset": ("a * X^b + c", "a power and a floor, or an offset"),
    "chinchilla": ("E + A / parameters^alpha + B / tokens^beta",
                   "loss of a model and its data (Hoffmann et al. 2022, 2203.15556, eq. 10)"),
    "saturating": ("1 + (width - 1) * a * X^b / (1 + a * X^b)",
                   "from 1, where all neurons are alike, to the width, where one holds all: the "
                   "range of kurtosis"),
    "broken": ("a * X^b * (1 + (X / k)^8)^((c - b) / 8)",
               "exponent b below the break k, c above it, within a fifth of a decade of it smooth "
               "(Caballero et al. 2022, 2210.14891, with one break)"),
}


@dataclasses.dataclass(frozen=True)
class Law:
  """A law to fit.

  Attributes:
    name: of NAMED, or the formula.
    formula: its expression.
    is_log: parameters that keep their sign and are fitted on a logarithmic scale: factors of what
      other parameters shape, and places on a variable's axis.
    linear: parameters in which the law is linear, all at once.
  """

  name: str
  formula: Formula
  is_log: Bools
  linear: Bools

  @property
  def parameters(self) -> tuple[str, ...]:
    """Names, in order."""
    return self.formula.parameters


def make(text: str, columns: Mapping[str, Floats], x: Sequence[str] = (),
         parameters: Sequence[str] = ()) -> Law:
  """Makes the law that `text` names or spells.

  Args:
    text: of NAMED, or a formula.
    columns: variables by name.
    x: for a named law, its variable.
    parameters: names that are parameters, beside letters and Greek ones.

  Raises:
    UserError: no such law, a fault in the formula, or a variable that is not there.
  """
  spelled = text
  if text in NAMED:
    spelled = NAMED[text][0]
    if "X" in spelled:
      if len(x) != 1:
        raise UserError(f"--law={text}: needs one variable, as in --x=width; it has "
                        + (", ".join(x) if x else "none"))
      if x[0] not in columns:
        raise UserError(f"--x={x[0]}: no such variable" + nearest(
            x[0], columns, otherwise=f"; there are {formulas.listed(columns)}"))
      spelled, x = spelled.replace("X", x[0]), ()
  elif text.isidentifier() and text not in columns:
    raise UserError(f"--law={text}: no such law" + nearest(
        text, NAMED, otherwise=f"; there are {', '.join(NAMED)}, and formulas as a * width^b + c"))
  formula = formulas.parse(spelled, columns, parameters)
  if x and {*x} != {*formula.variables}:
    raise UserError(f"--x={','.join(x)}: the law's variables are {', '.join(formula.variables)}; "
                    "leave --x out")
  for name in parameters:
    if name not in formula.parameters:
      raise UserError(f"--parameters={name}: is no parameter of the law; it has "
                      f"{', '.join(formula.parameters)}")
  return Law(text, formula, *_nature(formula, columns))


def _nature(formula: Formula, columns: Mapping[str, Floats]) -> tuple[Bools, Bools]:
  """Finds `is_log` and `linear` from derivatives at places drawn at random."""
  count = len(formula.parameters)
  bent = np.zeros((count, count), np.bool_)
  some = {name: _few(columns[name]) for name in formula.variables}
  rng = np.random.default_rng(0)
  for _ in range(3):
    draws = rng.uniform(0.2, 0.9, count)
    jets = {name: Jet(np.asarray(draws[i]), {i: np.ones(())}, {}, True)
            for i, name in enumerate(formula.parameters)}
    found = formula.jet(jets, some)
    for (i, j), pair in found.pairs.items():
      slopes = np.abs(found.first[i]) + np.abs(found.first[j])
      if np.any(np.abs(pair) > 1e-9 * slopes):
        bent[i, j] = bent[j, i] = True
  linear = np.zeros(count, np.bool_)
  for i in range(count):
    linear[i] = not bent[i, i] and not bent[i, :i][linear[:i]].any()
  inside = np.array([name in formula.exponents or name in formula.rates
                     for name in formula.parameters])
  linear &= ~inside
  return np.where(linear, (bent & ~linear).any(1), ~inside), linear


def _few(column: Floats) -> Floats:
  """Scales a variable near 1, where no power overflows: how a law bends does not depend on it."""
  values = np.unique(column)[:8]
  return values / np.abs(values).max() + 0.5 if np.abs(values).max() else values + 0.5
