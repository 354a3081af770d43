"""Formulas of laws, read by a parser of our own: nothing that a user types is ever run.

Enters: text such as `a * width^b + c` and the names of the variables that there are. Leaves: a
`Formula` that gives the law's value and its derivatives for many sets of parameters at once.
"""

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from of_jax.errors import UserError, nearest
from of_jax.scaling.jets import Floats, Jet, constant

GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "kappa", "mu", "nu", "omega", "phi",
         "psi", "rho", "sigma", "tau", "theta", "xi", "zeta")
FUNCTIONS: Mapping[str, Callable[[Jet], Jet]] = {"log": Jet.log, "exp": Jet.exp, "sqrt": Jet.sqrt}
_OPERATORS: Mapping[type[ast.operator], Callable[[Jet, Jet], Jet]] = {
    ast.Add: Jet.__add__, ast.Sub: Jet.__sub__, ast.Mult: Jet.__mul__, ast.Div: Jet.__truediv__,
    ast.Pow: Jet.__pow__}
_PARAMETER = re.compile(r"[A-Za-z]_?\d*")
_LONGEST = 300


@dataclasses.dataclass(frozen=True)
class Formula:
  """A law as an expression.

  Attributes:
    text: what was typed.
    parameters: names to be fitted, in order of appearance.
    variables: names of columns, likewise.
    exponents: parameters in the right operand of a power.
    rates: parameters inside of `exp`.
  """

  text: str
  parameters: tuple[str, ...]
  variables: tuple[str, ...]
  exponents: frozenset[str]
  rates: frozenset[str]
  _tree: ast.expr = dataclasses.field(repr=False, compare=False)

  def jet(self, parameters: Mapping[str, Jet], columns: Mapping[str, Floats]) -> Jet:
    """Evaluates on jets; columns and parameters broadcast. What is undefined is NaN."""
    known = {**{name: constant(columns[name]) for name in self.variables}, **parameters}
    with np.errstate(all="ignore"):
      return _evaluate(self._tree, known)

  def value(self, parameters: Floats, columns: Mapping[str, Floats]) -> Floats:
    """Evaluates for one set of parameters [P] or many [R, P]: values [n] or [R, n]."""
    parameters = np.asarray(parameters, np.float64)
    of = {name: constant(parameters[..., i, None] if parameters.ndim > 1 else parameters[i])
          for i, name in enumerate(self.parameters)}
    rows = np.broadcast_shapes(*(np.shape(columns[name]) for name in self.variables))
    shape = (*parameters.shape[:-1], *rows)
    return np.broadcast_to(self.jet(of, columns).value, shape)


def parse(text: str, variables: Iterable[str], parameters: Sequence[str] = (),
          flag: str = "--law") -> Formula:
  """Reads a formula.

  A name is a variable if there is one of that name, else a parameter if it is one letter (with a
  number behind it or not), a Greek letter's name, or in `parameters`.

  Raises:
    UserError: it is no formula, it has a name or an operation that is not known, no variable or no
      parameter.
  """
  known = [*variables]
  if len(text) > _LONGEST:
    raise UserError(f"{flag}: a formula of {len(text)} letters, of at most {_LONGEST}")
  try:
    tree = ast.parse(text.replace("^", "**").strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    raise UserError(f"{flag}={text}: not a formula; an example is a * width^b + c") from None
  seen: dict[str, set[str]] = {}
  _walk(tree, frozenset(), seen, lambda fault: UserError(f"{flag}={text}: {fault}"))
  for name in seen:
    if name not in known and not (name in parameters or name in GREEK
                                  or _PARAMETER.fullmatch(name)):
      raise UserError(
          f"{flag}={text}: {name} is no variable here, and no parameter (a letter, a Greek "
          f"letter's name, or listed in --parameters)" + nearest(
              name, known, otherwise=f"; variables are {listed(known)}"))
  own = tuple(name for name in seen if name not in known)
  if not own:
    raise UserError(f"{flag}={text}: has no parameter to fit; an example is a * width^b + c")
  used = tuple(name for name in seen if name in known)
  if not used:
    raise UserError(f"{flag}={text}: has no variable; there are {listed(known)}")
  exponents, rates = (frozenset(name for name in own if place in seen[name])
                      for place in ("exponent", "rate"))
  return Formula(text, own, used, exponents, rates, tree)


def listed(names: Iterable[str]) -> str:
  """Lists variables for a message; fields of a config, which are many, by one example."""
  names = [*names]
  short = [name for name in names if "." not in name]
  return ", ".join(short) + (f", and config fields as {names[-1]}" if len(short) < len(names)
                             else "")


def _dotted(node: ast.expr) -> str | None:
  """Names a variable, dotted ones as `optim.eps` included."""
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.Attribute):
    before = _dotted(node.value)
    return before and f"{before}.{node.attr}"
  return None


def _is_number(node: ast.expr) -> bool:
  return (isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
          and not isinstance(node.value, bool) and abs(node.value) < 1e300)


def _walk(node: ast.expr, places: frozenset[str], seen: dict[str, set[str]],
          fault: Callable[[str], UserError]) -> None:
  """Checks a tree and collects names with the places where they stand."""
  name = _dotted(node)
  if name is not None:
    seen.setdefault(name, set()).update(places)
  elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    _walk(node.left, places, seen, fault)
    inside = places | {"exponent"} if isinstance(node.op, ast.Pow) else places
    _walk(node.right, inside, seen, fault)
  elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
    _walk(node.operand, places, seen, fault)
  elif isinstance(node, ast.Call):
    called = _dotted(node.func)
    if called not in FUNCTIONS or len(node.args) != 1 or node.keywords:
      raise fault(f"{ast.unparse(node.func)}(...) is not known; there are "
                  + ", ".join(f"{f}(x)" for f in FUNCTIONS))
    _walk(node.args[0], places | {"rate"} if called == "exp" else places, seen, fault)
  elif not _is_number(node):
    raise fault(f"{ast.unparse(node)} is not of + - * / ^ ( ), numbers, names and functions")


def _evaluate(node: ast.expr, known: Mapping[str, Jet]) -> Jet:
  name = _dotted(node)
  if name is not None:
    return known[name]
  if isinstance(node, ast.BinOp):
    return _OPERATORS[type(node.op)](_evaluate(node.left, known), _evaluate(node.right, known))
  if isinstance(node, ast.UnaryOp):
    inner = _evaluate(node.operand, known)
    return -inner if isinstance(node.op, ast.USub) else inner
  if isinstance(node, ast.Call):
    return FUNCTIONS[str(_dotted(node.func))](_evaluate(node.args[0], known))
  assert isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
  return constant(float(node.value))
