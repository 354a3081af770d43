"""The flag that chooses among the sets of weights of a folder that --model names."""

from absl import flags

from of_jax.errors import UserError
from of_jax.interop.weight_sets import CHOICES

_WEIGHTS = flags.DEFINE_string(
    "weights", "", f"of a folder with two sets of weights that differ, which one to read: single "
    f"({CHOICES['single']}) or sharded ({CHOICES['sharded']})")


def chosen() -> str | None:
  """Returns the choice; None where none is made. A wrong word or no model is a UserError."""
  if not _WEIGHTS.value:
    return None
  if _WEIGHTS.value not in CHOICES:
    raise UserError(f"--weights={_WEIGHTS.value}: must be {' or '.join(CHOICES)}")
  if not flags.FLAGS["model"].value:
    raise UserError(f"--weights={_WEIGHTS.value}: is of --model")
  return _WEIGHTS.value
