"""Whether a run is over: DONE is held against the record and the newest checkpoint."""

from pathlib import Path

from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.storage import checkpoint, record, remote
from of_jax.storage.checkpoint import Checkpoints
from of_jax.storage.digest import Damaged
from of_jax.storage.run_directory import DONE, METRICS
from of_jax.train import distributed
from of_jax.train.types import Log


def is_over(workdir: Path, config: Config, log: Log, strict: bool = False) -> bool:
  """Tells whether a run came to its end; all processes of a job call this alike.

  A DONE that what lies beside it contradicts is removed, with a line, and the run is to go on.

  Args:
    workdir: of the run.
    config: resolved.
    log: takes the line.
    strict: refuses instead, and changes nothing.

  Raises:
    UserError: `strict`, or DONE is no file.
  """
  def look() -> str | None:
    path = workdir / DONE
    if not path.exists():
      return None
    if not path.is_file():
      raise UserError(f"{path}: is no file; move it away")
    return _contradiction(workdir, config)

  against = distributed.told(look)
  if not against:
    return against is not None
  name = remote.name_of(workdir)
  if strict:
    raise UserError(f"{name}: is marked {DONE}, but {against}; --strict_resume does not go on")
  log(f"{name}: is marked {DONE}, but {against}; goes on")
  if distributed.is_writer():
    (workdir / DONE).unlink(missing_ok=True)
  return False


def _contradiction(workdir: Path, config: Config) -> str:
  """Says what is not as it is in a run that is over; "" where nothing is.

  All checkpoints may have been removed since, to save space; the record must be there.
  """
  path, steps = workdir / METRICS, config.train.steps
  last, is_finite = record.end(path)
  if not checkpoint.has_begun(workdir):
    return "" if last >= steps or not is_finite else f"{METRICS} goes to step {last} of {steps}"
  with Checkpoints(workdir, reading=True) as checkpoints:
    step = checkpoints.latest
    try:
      kept = (checkpoints.kept(step) if step is not None else None) or {}
    except Damaged as error:
      return f"checkpoint {step} is damaged: {error.reason}"
  if is_finite and kept.get("diverged") is not True:
    if last < steps:
      return f"{METRICS} goes to step {last} of {steps}"
    if step is not None and step < steps:
      return f"its newest checkpoint is of step {step} of {steps}"
  if "metrics" in kept and not record.matches(path, kept["metrics"]):
    return f"{METRICS} is not what it was at checkpoint {step}"
  return ""
