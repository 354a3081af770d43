"""Run directories as sources of parameters: `DIR`, or `DIR@STEP`."""

from pathlib import Path
from typing import Any

from of_jax.config import values
from of_jax.config.paths import expanded
from of_jax.errors import UserError
from of_jax.storage import checkpoint, remote
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
    checkpoint.check_digest(where, params, wanted, written)
  return params, wanted


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
