"""Formulas: values, derivatives, names, and what is refused."""

import math

import numpy as np
import pytest

from of_jax.errors import UserError
from of_jax.scaling import law as laws
from of_jax.scaling.formula import parse
from of_jax.scaling.jets import Jet

COLUMNS = {"width": np.array([3.0, 5.0, 11.0]), "tokens": np.array([20.0, 7.0, 40.0])}
FORMULAS = {
    "a * width^b + c": lambda w, t, a, b, c: a * w ** b + c,
    "-(a - b) / sqrt(width) ** c": lambda w, t, a, b, c: -(a - b) / math.sqrt(w) ** c,
    "exp(-a * width) * log(b + tokens) + 2^c": (
        lambda w, t, a, b, c: math.exp(-a * w) * math.log(b + t) + 2 ** c),
    "a / (1 + (tokens / b)^c)^2 - +width": lambda w, t, a, b, c: a / (1 + (t / b) ** c) ** 2 - w,
}


@pytest.mark.parametrize("text", FORMULAS)
def test_values_and_both_derivatives(text):
  formula = parse(text, COLUMNS)
  order = [formula.parameters.index(name) for name in "abc"]
  at = np.array([0.7, 1.3, 0.4])[np.argsort(order)] if order != [0, 1, 2] else np.array(
      [0.7, 1.3, 0.4])

  def plain(values):
    a, b, c = (values[i] for i in order)
    return np.array([FORMULAS[text](w, t, a, b, c) for w, t in zip(*COLUMNS.values(),
                                                                  strict=True)])

  np.testing.assert_allclose(formula.value(at, COLUMNS), plain(at), rtol=1e-13)
  jets = {name: Jet(np.asarray(at[i]), {i: np.ones(())}, {}, True)
          for i, name in enumerate(formula.parameters)}
  found, eye = formula.jet(jets, COLUMNS), np.eye(3) * 1e-4
  for i in range(3):
    slope = (plain(at + eye[i]) - plain(at - eye[i])) / 2e-4
    np.testing.assert_allclose(np.broadcast_to(found.first[i], 3), slope, rtol=1e-6, atol=1e-7)
    for j in range(i, 3):
      bend = (plain(at + eye[i] + eye[j]) - plain(at + eye[i] - eye[j])
              - plain(at - eye[i] + eye[j]) + plain(at - eye[i] - eye[j])) / 4e-8
      own = np.broadcast_to(found.pairs.get((i, j), 0.0), 3)
      np.testing.assert_allclose(own, bend, rtol=1e-4, atol=1e-5)


def test_many_sets_of_parameters_at_once():
  formula = parse("a * width^b", COLUMNS)
  found = formula.value(np.array([[1.0, 2.0], [3.0, 0.5]]), COLUMNS)
  np.testing.assert_allclose(found, [COLUMNS["width"] ** 2, 3 * COLUMNS["width"] ** 0.5])


@pytest.mark.parametrize("text, message", (
    ("a * widht^b", "widht is no variable here.*did you mean width"),
    ("a * size^b", "size is no variable.*variables are width, tokens"),
    ("a * width^", "not a formula"),
    ("", "not a formula"),
    ("3 * 4", "no parameter"),
    ("a + b", "no variable"),
    ("width^2", "no parameter"),
    ("__import__('os').system('ls') + a", r"is not known; there are log\(x\)"),
    ("a * width.real", "width.real is no variable"),
    ("a * max(width, 3)", r"max\(\.\.\.\) is not known"),
    ("a if width else b", "is not of"),
    ("a * width % 3", "is not of"),
    ("a < width", "is not of"),
    ("a * width + 'x'", "is not of"),
    ("a * width + 1j", "is not of"),
    ("a * width + " + "9" * 400, "letters"),
    ("a * width + 1" + "0" * 280 + "0" * 25, "letters"),
    ("log(width, a)", r"log\(\.\.\.\) is not known"),
    ("lambda: a", "is not of"),
))
def test_what_is_refused_in_one_line(text, message):
  with pytest.raises(UserError, match=message) as fault:
    parse(text, COLUMNS)
  assert "\n" not in str(fault.value)


def test_a_column_comes_before_a_parameter_and_names_may_be_declared():
  assert parse("a * N^b", ["N"]).parameters == ("a", "b")
  assert parse("N * width^b", ["width"]).parameters == ("N", "b")
  assert parse("floor_ + width^b", ["width"], ["floor_"]).parameters == ("floor_", "b")
  assert parse("a * optim.eps^b", ["optim.eps"]).variables == ("optim.eps",)


def test_how_parameters_enter():
  law = laws.make("chinchilla", {"parameters": np.geomspace(1e6, 1e9, 4),
                                 "tokens": np.geomspace(1e8, 1e9, 4)})
  assert dict(zip(law.parameters, law.linear, strict=True)) == {
      "E": True, "A": True, "alpha": False, "B": True, "beta": False}
  assert dict(zip(law.parameters, law.is_log, strict=True)) == {
      "E": False, "A": True, "alpha": False, "B": True, "beta": False}


@pytest.mark.parametrize("name, x, message", (
    ("powr", ("width",), "no such law; did you mean power"),
    ("power", (), "needs one variable"),
    ("power", ("widht",), "did you mean width"),
    ("chinchilla", (), "parameters is no variable"),
    ("a * width^b", ("tokens",), "variables are width; leave --x out"),
))
def test_names_of_laws(name, x, message):
  with pytest.raises(UserError, match=message):
    laws.make(name, COLUMNS, x)
