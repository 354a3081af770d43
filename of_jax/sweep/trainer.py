"""Runs that are trained together: one compiled step of them all, spread over the devices.

What may differ between the members, of_jax.sweep.members says. A device holds one member or
several, and every member one device. Each leaves the run directory that it would leave alone.

A device steps its members in turn (`jax.lax.map`), or at once (`jax.vmap`). In turn, on a CPU,
state, loss and telemetry have the bits of the single run on one device, except what level `full`
measures of the optimiser: its sums read moments that the compiler computes a second time, other
multiplications fused with additions, and agree to 1e-6. At once, products are batched, and
members agree with their single runs to rounding; what an optimiser does at some steps alone, as a
refresh of its bases, would then be computed at every step.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from of_jax.config import Config
from of_jax.config.fields import replaced
from of_jax.data.loader import Shuffled
from of_jax.errors import UserError
from of_jax.storage import checkpoint
from of_jax.sweep import members
from of_jax.train import loop, startup
from of_jax.train.distributed import Interruption
from of_jax.train.divergence import Divergence
from of_jax.train.failures import saying_what_is_saved
from of_jax.train.outputs import RunOutputs
from of_jax.train.profile import Profile
from of_jax.train.progress import unfailing
from of_jax.train.replay import Replay
from of_jax.train.resume import Resumed, newest_whole
from of_jax.train.sharding import AXES, state_shardings
from of_jax.train.trainer import Functions, Trainer, compile_functions, make_functions, make_trainer
from of_jax.train.types import Batch, Log

MEMBERS = "members"


class Number:
  """A traced number where a module keeps one of Python's: an array would be taken for a
  parameter. Like Python's it takes the type of what it multiplies."""

  def __init__(self, value: jax.Array):
    self._value = value

  def __rmul__(self, x: jax.Array) -> jax.Array:
    return x * self._value.astype(x.dtype)


def train_together(runs: Mapping[Path, Config], log: Log = print, strict_resume: bool = False
                   ) -> None:
  """Trains or resumes several runs to their ends; finished ones are left as they are.

  Members that are to go on from different checkpoints, as after a kill between two saves or where
  one is damaged, are trained apart. One that diverges ends, as it would alone, and the others go
  on.

  Args:
    runs: run directory -> resolved config.
    log: takes the lines that tell what happens.
    strict_resume: refuses to go on where anything is damaged, see of_jax.train.resume.

  Raises:
    UserError: configs that differ in more than members may, and what of_jax.train.train raises.
      Nothing has been written then.
    Preempted: SIGTERM came; all states are saved.
  """
  if jax.process_count() > 1:
    raise UserError("members of one program are trained by one process; start as many commands")
  members.check({str(path): config for path, config in runs.items()})
  log = unfailing(log)
  going = {workdir: config for workdir, config in runs.items()
           if not startup.check(workdir, config, log, strict_resume)}
  if not going:
    return
  with (Interruption() as interruption, saying_what_is_saved(list(going)),
        contextlib.ExitStack() as held):
    found = _restored(going, held, log, strict_resume)
    parts: dict[int | None, dict[Path, Config]] = {}
    for path, config in going.items():
      resumed = found.get(path)
      parts.setdefault(resumed.step if resumed else None, {})[path] = config
    for part in parts.values():
      _train(part, {path: found.pop(path) for path in part if path in found}, log, interruption)


def _restored(runs: dict[Path, Config], held: contextlib.ExitStack, log: Log, strict: bool
              ) -> dict[Path, Resumed | None]:
  """Locks and restores the runs that have begun, before it is known which go on together."""
  begun = {path: config for path, config in runs.items() if checkpoint.has_begun(path)}
  if not begun:
    return {}
  sweep = Sweep(list(begun.values()))
  with jax.set_mesh(sweep.single_mesh):
    for path in begun:
      startup.lock(path, held)
    return {path: newest_whole(path, config, sweep.trainer_of(config), log, strict)
            for path, config in begun.items()}


def _train(runs: dict[Path, Config], resumed: dict[Path, Resumed | None], log: Log,
           interruption: Interruption) -> None:
  workdirs, configs = list(runs), list(runs.values())
  name = f"{len(runs)} runs" if len(runs) > 1 else workdirs[0].name
  sweep = Sweep(configs)
  planned = startup.Planned(runs, name, sweep.single_mesh, sweep.trainer_of, {
      "together": {"members": [str(path) for path in workdirs], "devices": sweep.mesh.size}},
      resumed=resumed)
  with contextlib.ExitStack() as held:
    begun = startup.begin(planned, held, log)
    divergence = Divergence(configs[0].train.on_divergence, [
        Replay(config, workdir, sweep.single_mesh, batches, startup.training_key(config))
        for (workdir, config), batches in zip(runs.items(), begun.batches)],
        begun.divergence, log)
    outputs = RunOutputs(
        workdirs, begun.logs, begun.checkpoints, begun.diverged, unstacked, log, divergence)
    state = sweep.stacked(begun.states)
    # What is stacked is not kept a second time.
    begun.states.clear()
    resumed.clear()
    loop.run_steps(
        configs[0], name, sweep.trainer, StackedFeed(sweep, begun.batches), sweep.keys(),
        outputs, state, begun.done, interruption, Profile(workdirs[0], None), log)
  for workdir in workdirs:
    log(f"{workdir}: finished")


class Sweep:
  """The members' program, and how their arrays lie: all have a leading axis of members.

  Attributes:
    trainer: of all; what initialises a member, `trainer_of` gives.
  """

  def __init__(self, configs: Sequence[Config], at_once: bool | None = None):
    """Compiles nothing yet.

    Args:
      configs: resolved; members of one program.
      at_once: whether a device steps its members at once, see the module's docstring; default
        not on CPUs, and not for optimisers that do something at some steps alone.
    """
    self.configs = list(configs)
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if len(self.configs) % n == 0)
    self.mesh = jax.make_mesh((count,), (MEMBERS,), axis_types=(AxisType.Auto,),
                              devices=devices[:count])
    self.single_mesh = Mesh(np.array(devices[:1]).reshape(1, 1, 1), AXES)
    self.sharding = NamedSharding(self.mesh, PartitionSpec(MEMBERS))
    optim = configs[0].optim
    if at_once is None:
      at_once = (jax.default_backend() != "cpu" and optim.precondition_frequency is None
                 and optim.projection_every is None)
    self._at_once = at_once
    self._numbers = {path: np.asarray(values, np.float32)
                     for path, values in members.step_numbers(configs).items()}
    template = make_functions(configs[0])
    shardings = jax.tree.map(lambda _: self.sharding, state_shardings(
        self.single_mesh, template.network, template.optimizer))
    self.trainer: Trainer = compile_functions(self._functions(template), None, shardings,
                                              self.sharding)

  def trainer_of(self, config: Config) -> Trainer:
    """Makes the trainer that initialises a member, shared by those that begin alike."""
    return make_trainer(members.initial(config), self.single_mesh)

  def keys(self) -> jax.Array:
    """Makes the members' keys, [members], from which every step draws."""
    keys: jax.Array = jax.device_put(jnp.stack(
        [startup.training_key(config) for config in self.configs]), self.sharding)
    return keys

  def stacked(self, trees: Sequence[Any]) -> Any:
    """Stacks trees of arrays, a member each, into one tree for all, spread over the devices."""
    return jax.tree.map(lambda *leaves: jax.device_put(
        np.stack([np.asarray(leaf) for leaf in leaves]), self.sharding), *trees)

  def _functions(self, template: Functions) -> Functions:
    """Makes the functions of all members, from what to call for one."""

    def every(call: Callable[[Functions], Any]) -> Any:
      def one(numbers: dict[str, jax.Array], *arguments: Any) -> Any:
        return call(make_functions(_with_numbers(self.configs[0], numbers)))(*arguments)

      def on_a_device(*stacked: Any) -> Any:
        if self._at_once:
          return jax.vmap(one)(*stacked)
        return jax.lax.map(lambda arguments: one(*arguments), stacked)

      def run(*arguments: Any) -> Any:
        spec = PartitionSpec(MEMBERS)
        return jax.shard_map(on_a_device, mesh=self.mesh, in_specs=spec, out_specs=spec,
                             check_vma=False)(self._numbers, *arguments)

      return run

    def side_program(name: str) -> Any:
      return every(lambda made: made.side_programs[name].run)

    plain = every(lambda made: made.plain)
    return dataclasses.replace(
        template, plain=plain, measured=plain if template.measured is template.plain else every(
            lambda made: made.measured),
        evaluate=every(lambda made: made.evaluate), add=every(lambda made: made.add),
        finish=every(lambda made: made.finish),
        side_programs={name: dataclasses.replace(program, run=side_program(name))
                       for name, program in template.side_programs.items()})


class StackedFeed:
  """The members' batches, each in its own order."""

  def __init__(self, sweep: Sweep, batches: Sequence[Shuffled]):
    self._sweep, self._batches = sweep, batches

  def train(self, step: int) -> Batch:
    """Gives the batches of step `step`, from 1."""
    batch: Batch = self._sweep.stacked([own.train_batch(step - 1) for own in self._batches])
    return batch

  def evaluation(self) -> list[Batch]:
    """Gives the evaluation set, which all members share."""
    return [self._sweep.stacked([batch] * len(self._batches))
            for batch in self._batches[0].eval_batches()]


def unstacked(tree: Any) -> list[Any]:
  """Splits a tree of all members into one for each, copied to the host."""
  whole = jax.tree.map(np.asarray, tree)
  members = jax.tree.leaves(whole)[0].shape[0]
  # Copies, since the next step takes the memory that these may be views of.
  return [jax.tree.map(lambda leaf: np.array(leaf[i]), whole) for i in range(members)]


def _with_numbers(config: Config, numbers: Mapping[str, jax.Array]) -> Config:
  return replaced(config, {
      path: Number(value) if path.startswith("model.") else value
      for path, value in numbers.items()})
