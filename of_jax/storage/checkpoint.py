"""Orbax checkpoints: which steps are kept, saving in the background, restoring on any mesh.

The v1 interface of Orbax still moves, so this file alone imports it.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from of_jax.config import Config, TrainConfig
from of_jax.config.paths import check_no_pattern
from of_jax.errors import UserError, reason_of
from of_jax.storage import identity, remote, run_directory
from of_jax.storage.digest import Damaged, Digest, check_state, digest, digest_of_state
from of_jax.storage.quiet import abandon, quiet, quiet_orbax

State = dict[str, Any]

# In the name of what Orbax has not finished to write.
_TEMPORARY = "orbax-checkpoint-tmp"


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

  # A process saves one at a time: of two at once, Orbax's threads mix up the numbers of the saves.
  _last: ClassVar["Checkpoints | None"] = None

  def __init__(self, workdir: Path, reading: bool = False, config: Config | None = None):
    """`config`: of the run, which its checkpoints then say. `reading`: leaves alone what another
    process may be in the middle of saving, and each process of a job reads for itself, so that one
    that cannot does not keep the others waiting."""
    quiet_orbax()
    check_no_pattern(remote.name_of(workdir), workdir)
    self._folder = remote.checkpoints(workdir)
    self._context = _alone() if reading else contextlib.nullcontext()
    self._config = config
    self._saving: Any = None
    if not reading:
      # Removes what was not saved to its end. Lightweight, since it would else read a file of each
      # step, and fail at one that is damaged.
      ocp.training.Checkpointer(
          self._folder, cleanup_tmp_directories=True, lightweight_initialize=True).close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self.wait()

  @property
  def latest(self) -> int | None:
    """Last step that was saved whole; a torn save does not count."""
    return max(self.steps, default=None)

  def save(self, state: Mapping[str, Any], step: int, kept: Mapping[str, Any] | None = None
           ) -> None:
    """Copies the state to the host and goes on writing in the background.

    Args:
      state: `params` and `opt_state`.
      step: how many steps it was trained for; what was saved of it before is replaced.
      kept: what a run has beside its state, for JSON: see `kept`.

    Raises:
      OSError: this one, or the one before, of whichever run, cannot be written.
    """
    if Checkpoints._last is not None:
      Checkpoints._last.wait()
    Checkpoints._last = self
    beside = identity.sealed(step, kept or {}, self._config)
    with _writing(self._folder):
      self._saving = ocp.save_checkpointables_async(
          self._folder / str(step),
          {"params": state["params"], "opt_state": state["opt_state"],
           "digest": digest_of_state(
               state["params"], state["opt_state"], step, identity.words(beside))},
          overwrite=True, custom_metadata=beside)

  def wait(self) -> None:
    """Returns when everything that was saved is on disk; a save holds a thread until then.

    Raises:
      OSError: it cannot be written.
    """
    saving, self._saving = self._saving, None
    if saving is not None:
      with _writing(self._folder):
        saving.result()

  @property
  def steps(self) -> list[int]:
    """Steps that were saved whole, ascending."""
    return remote.saved_steps(self._folder)

  @property
  def strange(self) -> dict[str, str]:
    """Finds what lies among the steps and only looks like one: its name, and what is wrong."""
    found = {}
    for path in self._folder.iterdir():
      name = path.name
      if not name[:1].isdigit() or _TEMPORARY in name or run_directory.ASIDE in name:
        continue
      if not remote.is_step(name):
        found[name] = "that is no step's name"
      elif not path.is_dir():
        found[name] = "a file where a folder should be"
    return found

  def set_aside(self, name: str) -> str:
    """Gives what lies among the steps another name, which it returns.

    Raises:
      UserError: that is not permitted.
    """
    there = run_directory.name_aside(self._folder / name)
    try:
      (self._folder / name).rename(there)
    except OSError as error:
      raise UserError(f"{self._folder / name}: is damaged and cannot be renamed to {there.name}: "
                      f"{error.strerror or error}; move it away") from None
    return str(there.name)

  def kept(self, step: int) -> dict[str, Any] | None:
    """Reads what was saved beside the state of `step`; None for a checkpoint of schema 1.

    Raises:
      Damaged: it cannot be read, or is not what was saved at this step.
    """
    found = self._read(step, lambda path: ocp.checkpointables_metadata(path).custom_metadata)
    return identity.opened(found or {}, step)

  def shapes(self, step: int, names: tuple[str, ...] = ("params", "opt_state")) -> State:
    """Reads which parts a step has, with a shape and a dtype for every array.

    Beside the two there is `digest`, which checkpoints of older versions lack.

    Raises:
      Damaged: it cannot be read.
    """
    metadata = self._read(step, lambda path: ocp.checkpointables_metadata(path).metadata)
    return {name: metadata[name] for name in names if metadata.get(name) is not None}

  def load_host(self, step: int, names: tuple[str, ...] = ("params", "opt_state")) -> State:
    """Loads the same parts as NumPy arrays, whatever mesh wrote them.

    Raises:
      Damaged: they cannot be read.
    """
    found = self.shapes(step, names)
    loaded: State = self._read(step, lambda path: ocp.load_checkpointables(path, jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), found)))
    return loaded

  def load_parameters(self, step: int, shapes: Any, shardings: Any) -> Any:
    """Loads the parameters alone, laid out as `shardings` say. Raises Damaged."""
    abstract = {"params": _abstract(shapes, shardings)}
    return self._read(step, lambda path: ocp.load_checkpointables(path, abstract))["params"]

  def load(self, shapes: State, shardings: State, step: int) -> tuple[State, State]:
    """Loads the state after `step`, laid out as `shardings` say, whatever mesh wrote it.

    Returns:
      The state, and the digest that was saved with it, see `check_state`.

    Raises:
      Damaged: it cannot be read.
    """
    parts = ("params", "opt_state")
    found = self.shapes(step)
    for name in parts:
      if name not in found:
        raise Damaged(f"it has no {name}", f"{self._folder}/{step}")
    written = self.load_host(step, ("digest",)).get("digest", {})
    abstract = {name: _abstract(shapes[name], shardings[name]) for name in parts}
    loaded = self._read(step, lambda path: {
        **ocp.load_checkpointables(path, abstract),
        "step": jax.device_put(np.int32(step), shardings["step"])})
    return loaded, written

  def restore(self, shapes: State, shardings: State, step: int) -> State:
    """Loads the state after `step` as `load` does, and checks its digest. Raises Damaged."""
    state, written = self.load(shapes, shardings, step)
    kept = self.kept(step)
    check_state(state, step, written, kept is not None, identity.words(kept))
    return state

  def _read(self, step: int, call: Callable[[Any], Any]) -> Any:
    """Calls a reader with the folder of a step. Raises Damaged for whatever it raises of damage."""
    path = self._folder / str(step)
    with quiet():
      try:
        with self._context:
          return call(path)
      except (MemoryError, jax.errors.JaxRuntimeError):
        # Too little memory says nothing of the checkpoint.
        raise
      except Exception as error:
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"
      abandon()
    raise Damaged(f"it cannot be read: {reason}", str(path))


@contextlib.contextmanager
def _writing(folder: Any) -> Iterator[None]:
  """Turns what a save raises of a disk into an OSError: TensorStore hides its number in a text."""
  # Orbax would make the folder of a run that somebody removed anew, for its checkpoints alone.
  if not remote.is_url(folder) and not folder.is_dir():
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
  reason = ""
  try:
    yield
    return
  except OSError as error:
    number = error.errno or errno.EIO
    if isinstance(error, TimeoutError) and error.errno is None:
      # Orbax's own, which asks the clock of the day.
      number, reason = errno.ETIMEDOUT, "the save came to no end in time, or the clock was set"
  except jax.errors.JaxRuntimeError:
    raise
  except Exception as error:
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if found is None:
      raise UserError(f"{folder}: cannot be written: {reason_of(error)}") from error
    number = int(found[1])
  with quiet():
    abandon()
  raise OSError(number, reason or os.strerror(number), str(folder))


def has_begun(workdir: Path) -> bool:
  """Tells whether there is, or was, a checkpoint in `workdir`, to go on from.

  Raises:
    UserError: where the checkpoints should be is something else, or it cannot be read.
  """
  folder = remote.checkpoints(workdir)
  try:
    if folder.exists() and not folder.is_dir():
      raise UserError(f"{folder}: is a file, and should be the folder of the run's checkpoints")
    if not folder.exists():
      return False
    names = [path.name for path in folder.iterdir()]
  except OSError as error:
    raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from None
  checkpoints = Checkpoints(workdir, reading=True)
  return bool(checkpoints.steps or checkpoints.strange
              or [name for name in names if run_directory.ASIDE in name])


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


def bytes_of(shapes: Iterable[Any]) -> int:
  """Counts the bytes that arrays of these shapes take, uncompressed."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)


def _alone() -> Any:
  """Makes a context in which Orbax waits for no other process."""
  if jax.process_count() == 1:
    return contextlib.nullcontext()
  own = jax.process_index()
  return ocp.Context(multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"alone_{own}"))


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
