"""Run directories as sources of parameters: `DIR`, or `DIR@STEP`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.config import values
from of_jax.config.paths import expanded
from of_jax.errors import UserError
from of_jax.storage import checkpoint, identity, remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.storage.digest import Damaged


def load_parameters(source: str, shapes: Any, shardings: Any) -> tuple[Any, int]:
  """Loads the parameters of another run, for fine-tuning, and tells their step.

  Args:
    source: a run directory, or `DIR@STEP`; default its last checkpoint.
    shapes, shardings: of the parameters that the new run has.

  Raises:
    UserError: no such run or step, or parameters of other names or shapes.
  """
  directory, step = parse_source(source)
  where = f"config.train.init_from={source}"
  with Checkpoints(directory, reading=True) as checkpoints:
    available = checkpoints.steps
    if not available:
      raise UserError(f"{where}: no checkpoint in {directory}")
    wanted = checkpoint.check_step(where, max(available) if step is None else step, available)
    try:
      saved = checkpoints.shapes(wanted)
      checkpoint.check_same_shapes(where, shapes, saved.get("params", {}))
      params = checkpoints.load_parameters(wanted, shapes, shardings)
      written = checkpoints.load_host(wanted, ("digest",))
    except Damaged as error:
      raise UserError(f"{where}: {error}") from error
    check_run(where, checkpoints, directory, wanted, written)
    checkpoint.check_digest(where, params, wanted, written)
  return params, wanted


def check_run(where: str, checkpoints: Checkpoints, directory: Path, step: int,
              written: Mapping[str, Any]) -> None:
  """Checks that all of a checkpoint says, as far as it does, that it is of the run that it lies in.

  Args:
    where: begins the message.
    checkpoints: of the run.
    directory: of the run.
    step: of the checkpoint.
    written: the checkpoint's `digest`, as `load_host` gives it.

  Raises:
    UserError: it is another's, or of another step.
  """
  try:
    kept = checkpoints.kept(step)
    identity.check_config(kept, run_directory.read_json(directory / run_directory.CONFIG))
    if not np.array_equal(written.get("digest", {}).get("run", identity.words(kept)),
                          identity.words(kept)):
      raise Damaged("its arrays are of another run than its _CHECKPOINT_METADATA")
  except Damaged as error:
    raise UserError(f"{where}: the checkpoint of step {step} is damaged: {error.reason}") from None


def parse_source(source: str) -> tuple[Path, int | None]:
  """Parses `DIR` or `DIR@STEP`: (directory, step). Raises UserError where there is no such run."""
  directory, _, step = source.partition("@") if not expanded(source).exists() else (source, "", "")
  if step and values.whole(step) is None:
    raise UserError(f"config.train.init_from={source}: the step behind @ is not a number")
  path = remote.reading(directory)
  if not remote.checkpoints(path).is_dir():
    raise UserError(f"config.train.init_from={source}: {directory} is not a run directory, nor a "
                    "foreign model: a folder with config.json and safetensors, or a .gguf file")
  return path, int(step) if step else None
