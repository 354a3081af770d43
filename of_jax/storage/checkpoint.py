"""Orbax checkpoints: which steps are kept, saving in the background, restoring on any mesh.

The v1 interface of Orbax still moves, so this file alone imports it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from of_jax.config import TrainConfig
from of_jax.errors import UserError
from of_jax.storage import remote
from of_jax.storage.digest import digest

State = dict[str, Any]


def kept_steps(train: TrainConfig) -> list[int]:
  """0, the powers of `checkpoint_log_base`, the multiples of `checkpoint_every`, and the last.

  Log-spaced, because outlier features appear early.
  """
  kept = {0, train.steps, *range(train.checkpoint_every, train.steps + 1, train.checkpoint_every)}
  power = 1
  while power <= train.steps:
    kept.add(power)
    power *= train.checkpoint_log_base
  return sorted(kept)


class Checkpoints:
  """The checkpoints of one run directory; `with` waits for the last save and closes."""

  def __init__(self, workdir: Path, reading: bool = False):
    """`reading`: leaves alone what another process may be in the middle of saving."""
    self._checkpointer = ocp.training.Checkpointer(
        remote.checkpoints(workdir), cleanup_tmp_directories=not reading)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self._checkpointer.close()

  @property
  def latest(self) -> int | None:
    """The last step that was saved whole; a torn save does not count."""
    latest = self._checkpointer.latest
    return None if latest is None else int(latest.step)

  def save(self, state: State, step: int) -> None:
    """Copies the state to the host and goes on writing in the background."""
    self._checkpointer.save_checkpointables_async(
        step, {"params": state["params"], "opt_state": state["opt_state"],
               "digest": digest(state["params"], step)}, force=True)

  @property
  def steps(self) -> list[int]:
    """The steps that were saved whole, ascending."""
    return sorted(int(saved.step) for saved in self._checkpointer.checkpoints)

  def shapes(self, step: int, names: tuple[str, ...] = ("params", "opt_state")) -> State:
    """The parts of a step that it has, with a shape and a dtype for every array.

    Beside the two there is `digest`, which checkpoints of older versions lack.
    """
    metadata = self._checkpointer.checkpointables_metadata(step).metadata
    return {name: metadata[name] for name in names if name in metadata}

  def load_host(self, step: int, names: tuple[str, ...] = ("params", "opt_state")) -> State:
    """The same parts as NumPy arrays, whatever mesh wrote them."""
    abstract = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), self.shapes(step, names))
    loaded: State = self._checkpointer.load_checkpointables(step, abstract)
    return loaded

  def load_parameters(self, step: int, shapes: Any, shardings: Any) -> Any:
    """The parameters alone, laid out as `shardings` say."""
    return self._checkpointer.load_checkpointables(
        step, {"params": _abstract(shapes, shardings)})["params"]

  def wait(self) -> None:
    """Returns when everything that was saved is on disk."""
    self._checkpointer.wait()

  def restore(self, shapes: State, shardings: State, step: int) -> State:
    """The state after `step`, laid out as `shardings` say, whatever mesh wrote it."""
    abstract = _abstract(shapes, shardings)
    loaded = self._checkpointer.load_checkpointables(
        step, {name: abstract[name] for name in ("params", "opt_state")})
    count = jax.device_put(np.int32(step), shardings["step"])
    return {"params": loaded["params"], "opt_state": loaded["opt_state"], "step": count}


def has_checkpoint(workdir: Path) -> bool:
  """Whether a run in `workdir` has saved a step whole, to go on from."""
  if not remote.checkpoints(workdir).is_dir():
    return False
  with Checkpoints(workdir, reading=True) as checkpoints:
    return checkpoints.latest is not None


def load_parameters(source: str, shapes: Any, shardings: Any) -> tuple[Any, int]:
  """The parameters of another run, for fine-tuning, and their step.

  Args:
    source: a run directory, or `DIR@STEP`; default its last checkpoint.
    shapes, shardings: of the parameters that the new run has.

  Raises:
    UserError: no such run or step, or parameters of other names or shapes.
  """
  directory, step = parse_source(source)
  with Checkpoints(directory, reading=True) as checkpoints:
    available = checkpoints.steps
    if not available:
      raise UserError(f"config.train.init_from={source}: no checkpoint in {directory}")
    wanted = max(available) if step is None else step
    if wanted not in available:
      raise UserError(f"config.train.init_from={source}: no checkpoint at step {wanted}; "
                      f"there are {', '.join(map(str, available))}")
    check_same_shapes(source, shapes, checkpoints.shapes(wanted)["params"])
    params = checkpoints.load_parameters(wanted, shapes, shardings)
    written = checkpoints.load_host(wanted, ("digest",))
  # Checkpoints of older versions have none.
  if written and not np.array_equal(written["digest"]["params"], digest(params, wanted)["params"]):
    raise UserError(f"config.train.init_from={source}: the parameters of step {wanted} do not have "
                    "the digest that was written with them; the checkpoint is damaged")
  return params, wanted


def parse_source(source: str) -> tuple[Path, int | None]:
  """`DIR` or `DIR@STEP` -> (directory, step). Raises UserError where there is no such run."""
  directory, _, step = source.partition("@") if not Path(source).exists() else (source, "", "")
  if step and not step.isdigit():
    raise UserError(f"config.train.init_from={source}: the step behind @ is not a number")
  path = remote.reading(directory)
  if not remote.checkpoints(path).is_dir():
    raise UserError(f"config.train.init_from={source}: {directory} is not a run directory, nor a "
                    "foreign model: a folder with config.json and safetensors, or a .gguf file")
  return path, int(step) if step else None


def bytes_of(shapes: Iterable[Any]) -> int:
  """Bytes that arrays of these shapes take, uncompressed."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)


def _abstract(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
      lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
      shapes, shardings)


def check_same_shapes(source: str, shapes: Any, saved: Any) -> None:
  """Raises UserError, with the first that differs, unless the parameters are the same in shape."""
  def named(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves}

  ours, theirs = named(shapes), named(saved)
  for name in sorted({*ours, *theirs}):
    if ours.get(name) != theirs.get(name):
      raise UserError(f"config.train.init_from={source}: parameter {name} is "
                      f"{theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} here")
