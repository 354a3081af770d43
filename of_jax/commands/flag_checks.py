"""Checks of flags that name sites, metrics and analyses, before anything imports jax."""

from collections.abc import Sequence

from of_jax.config import declared_metrics
from of_jax.errors import UserError, closest


def names(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
  """Checks that all names given are known; raises UserError with the closest one else."""
  for name in given:
    if name not in known:
      close = closest(name, known)
      raise UserError(f"--{flag}={name}: " + (
          f"no such name; did you mean {close}?" if close else f"there are {', '.join(known)}"))


def metrics(given: Sequence[str], own: Sequence[str]) -> None:
  """Checks that metrics are what a forward pass is enough for, or among the user's own."""
  of_forward, of_step = ([
      name for family in declared_metrics.families().values()
      if (family.kind in declared_metrics.OF_FORWARD) == is_of_forward
      for metric in family.metrics for name in declared_metrics.names_of(metric)]
      for is_of_forward in (True, False))
  for name in given:
    if name in of_step:
      raise UserError(f"--metrics={name}: is measured of steps, in training; metrics.jsonl has it "
                      "where the run asked for it")
  names("metrics", given, [*of_forward, *own])


def own_metrics(texts: Sequence[str]) -> list[str]:
  """Names what --user_metrics measures; raises UserError for a name that is taken."""
  try:
    own = names_of(texts)
  except UserError as error:
    raise UserError(str(error).replace("config.telemetry.user_metrics", "--user_metrics")
                    ) from None
  for name in own:
    if own.count(name) > 1 or name.removesuffix(
        declared_metrics.NO_FIRST) in declared_metrics.metrics():
      raise UserError(f"--user_metrics={','.join(texts)}: there already is a metric {name}; give "
                      "it another name")
  return own


def names_of(texts: Sequence[str]) -> list[str]:
  """Names the metrics that FILE.py:NAME each measures."""
  return [name for text in texts for metric in declared_metrics.user_family(text).metrics
          for name in declared_metrics.names_of(metric)]
