"""Metrics of a user's own file, named in a config: `telemetry.user_metrics=my_file.py:NAME`.

The simple form is a function of one sequence; the metric is its mean over sequences, and its
first docstring line the formula:

  def large_share(x_TxD):
    "Share of entries above 6."
    return (abs(x_TxD) > 6).mean()

A metric that is no mean over sequences is a class, a subclass of of_jax.telemetry.Family with
`statistics` that add up, `finish`, and `metrics` for people:

  class Range(Family):
    metrics = {"range": ("max X - min X", "activation", "0 and above", "mine")}

    def statistics(self, a):
      return {"max_x": a.largest(a.x_BxTxD), "max_minus_x": a.largest(-a.x_BxTxD)}

    def finish(self, s, no_first):
      return {"range": group(s, "max_x", no_first) + group(s, "max_minus_x", no_first)}

Both are measured inside the compiled train step at every watched site, and again in replay.
"""

import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp

from of_jax import user_code
from of_jax.config.paths import expanded
from of_jax.errors import THEIRS, UserError, reason_of
from of_jax.telemetry.activations import Activations
from of_jax.telemetry.family import Family, Statistics


def load(text: str) -> Family:
  """Loads the family that PATH.py:NAME stands for.

  Raises:
    UserError: the file fails to run, or NAME is neither a function nor a Family.
  """
  path, _, name = text.rpartition(":")
  where = f"config.telemetry.user_metrics={text}"
  file = expanded(path, where)
  spec = importlib.util.spec_from_file_location(f"user_metrics_{file.stem}", file)
  assert spec is not None and spec.loader is not None, path
  module = importlib.util.module_from_spec(spec)
  user_code.runs(str(file))
  try:
    spec.loader.exec_module(module)
    found = getattr(module, name)
  except THEIRS as error:
    raise UserError(f"{where}: {path} fails with {reason_of(error)}") from None
  if not isinstance(found, type):
    return OfSequences(name, found)
  if not issubclass(found, Family):
    raise UserError(f"{where}: the class is no subclass of of_jax.telemetry.Family")
  return found()


class OfSequences(Family):
  """Mean over sequences of a function of one, [time, width] -> a number.

  Sequences of padding alone are left out.
  """

  def __init__(self, name: str, function: Callable[[jax.Array], jax.Array]):
    self._name, self._function = name, function

  def statistics(self, a: Activations) -> Statistics:
    try:
      values_B = jnp.asarray(jax.vmap(self._function)(a.raw_BxTxD))
    except THEIRS as error:
      raise UserError(
          f"telemetry.user_metrics: {self._name} fails with {reason_of(error)}") from error
    if values_B.shape != a.raw_BxTxD.shape[:1]:
      raise UserError(f"telemetry.user_metrics: {self._name} gives an array of the shape "
                      f"{values_B.shape[1:]} for a sequence, not one number")
    exists_B = jnp.any(a.counts_BxT, 1)
    return {"sum": jnp.sum(jnp.where(exists_B, values_B.astype(jnp.float32), 0)),
            "sequences": jnp.sum(exists_B, dtype=jnp.float32)}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    del no_first
    return {self._name: s["sum"] / s["sequences"]}
