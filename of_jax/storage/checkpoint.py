"""Orbax checkpoints: which steps are kept, saving in the background, restoring on any mesh.

The v1 interface of Orbax still moves, so this file alone imports it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from of_jax.config import TrainConfig
from of_jax.errors import UserError
from of_jax.storage import remote
from of_jax.storage.digest import Digest, digest

State = dict[str, Any]


def kept_steps(train: TrainConfig) -> list[int]:
  """Lists 0, the powers of `checkpoint_log_base`, multiples of `checkpoint_every`, and the last.

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
    """Last step that was saved whole; a torn save does not count."""
    latest = self._checkpointer.latest
    return None if latest is None else int(latest.step)

  def save(self, state: Mapping[str, Any], step: int) -> None:
    """Copies the state to the host and goes on writing in the background."""
    self._checkpointer.save_checkpointables_async(
        step, {"params": state["params"], "opt_state": state["opt_state"],
               "digest": digest(state["params"], step)}, force=True)

  @property
  def steps(self) -> list[int]:
    """Steps that were saved whole, ascending."""
    return sorted(int(saved.step) for saved in self._checkpointer.checkpoints)

  def shapes(self, step: int, names: tuple[str, ...] = ("params", "opt_state")) -> State:
    """Reads which parts a step has, with a shape and a dtype for every array.

    Beside the two there is `digest`, which checkpoints of older versions lack.
    """
    metadata = self._checkpointer.checkpointables_metadata(step).metadata
    return {name: metadata[name] for name in names if name in metadata}

  def load_host(self, step: int, names: tuple[str, ...] = ("params", "opt_state")) -> State:
    """Loads the same parts as NumPy arrays, whatever mesh wrote them."""
    abstract = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), self.shapes(step, names))
    loaded: State = self._checkpointer.load_checkpointables(step, abstract)
    return loaded

  def load_parameters(self, step: int, shapes: Any, shardings: Any) -> Any:
    """Loads the parameters alone, laid out as `shardings` say."""
    return self._checkpointer.load_checkpointables(
        step, {"params": _abstract(shapes, shardings)})["params"]

  def wait(self) -> None:
    """Returns when everything that was saved is on disk."""
    self._checkpointer.wait()

  def restore(self, shapes: State, shardings: State, step: int) -> State:
    """Loads the state after `step`, laid out as `shardings` say, whatever mesh wrote it."""
    abstract = _abstract(shapes, shardings)
    loaded = self._checkpointer.load_checkpointables(
        step, {name: abstract[name] for name in ("params", "opt_state")})
    count = jax.device_put(np.int32(step), shardings["step"])
    return {"params": loaded["params"], "opt_state": loaded["opt_state"], "step": count}


def has_checkpoint(workdir: Path) -> bool:
  """Tells whether a run in `workdir` has saved a step whole, to go on from."""
  if not remote.checkpoints(workdir).is_dir():
    return False
  with Checkpoints(workdir, reading=True) as checkpoints:
    return checkpoints.latest is not None


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
    wanted = check_step(where, max(available) if step is None else step, available)
    check_same_shapes(where, shapes, checkpoints.shapes(wanted)["params"])
    params = checkpoints.load_parameters(wanted, shapes, shardings)
    check_digest(where, params, wanted, checkpoints.load_host(wanted, ("digest",)))
  return params, wanted


def check_step(where: str, step: int, available: Sequence[int]) -> int:
  """Gives a step that a run has a checkpoint of. Raises UserError, beginning with `where`, else."""
  if step not in available:
    raise UserError(f"{where}: no checkpoint at step {step}; there are "
                    f"{', '.join(map(str, available))}")
  return step


def check_digest(where: str, params: Any, step: int, written: Mapping[str, Any]) -> Digest:
  """Gives the digest of loaded parameters, which is the one that was written with them.

  Args:
    where: begins the message.
    params: of the checkpoint of `step`.
    written: the checkpoint's `digest`, as `load_host` gives it; those of older versions have none.

  Raises:
    UserError: another digest, or one of another step.
  """
  found: Digest = digest(params, step)
  if "digest" not in written:
    return found
  there = int(written["digest"]["step"])
  if there != step:
    raise UserError(f"{where}: the checkpoint of step {step} was written at step {there}")
  if not np.array_equal(written["digest"]["params"], found["params"]):
    raise UserError(f"{where}: the parameters of step {step} do not have the digest that was "
                    "written with them; the checkpoint is damaged")
  return found


def parse_source(source: str) -> tuple[Path, int | None]:
  """Parses `DIR` or `DIR@STEP`: (directory, step). Raises UserError where there is no such run."""
  directory, _, step = source.partition("@") if not Path(source).exists() else (source, "", "")
  if step and not step.isdigit():
    raise UserError(f"config.train.init_from={source}: the step behind @ is not a number")
  path = remote.reading(directory)
  if not remote.checkpoints(path).is_dir():
    raise UserError(f"config.train.init_from={source}: {directory} is not a run directory, nor a "
                    "foreign model: a folder with config.json and safetensors, or a .gguf file")
  return path, int(step) if step else None


def bytes_of(shapes: Iterable[Any]) -> int:
  """Counts the bytes that arrays of these shapes take, uncompressed."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)


def _abstract(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
      lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
      shapes, shardings)


def check_same_shapes(where: str, shapes: Any, saved: Any,
                      told: str = "parameter {name} is {saved} there and {ours} here") -> None:
  """Checks that parameters are the same in names and shapes.

  Args:
    where: begins the message.
    shapes: those that are wanted; arrays, or anything else with a shape.
    saved: those that there are.
    told: the rest of the message.

  Raises:
    UserError: with the first that differs.
  """
  def named(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves}

  ours, theirs = named(shapes), named(saved)
  for name in sorted({*ours, *theirs}):
    if ours.get(name) != theirs.get(name):
      raise UserError(f"{where}: " + told.format(
          name=name, saved=theirs.get(name, "absent"), ours=ours.get(name, "absent")))
