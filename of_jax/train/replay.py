"""Replay of a run's steps from a checkpoint, to find where what is not finite first appeared.

Steps are functions of the state and the batch, so that the state before any of them is had again
from the checkpoint before it, bit for bit. There the forward pass counts at every site what is NaN
or infinite, whatever telemetry watches.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from of_jax.config import Config
from of_jax.config.fields import replaced
from of_jax.data import loader
from of_jax.errors import UserError, reason_of
from of_jax.models.functional import named_leaves
from of_jax.storage import remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.telemetry.observe import Telemetry
from of_jax.train import distributed
from of_jax.train.objective import Objective
from of_jax.train.sharding import place_batch
from of_jax.train.trainer import make_trainer
from of_jax.train.types import Batch, State

# The most steps that are computed again: the run waits for them.
_MOST = 1000
_Counts = dict[str, jax.Array]


class Replay:
  """The steps of one run."""

  def __init__(self, config: Config, workdir: Path, mesh: Mesh, batches: loader.Shuffled,
               key: jax.Array, moved: int = 0):
    """Args: the run's, and how far its batches have moved on by rollbacks."""
    self._config, self._workdir, self._mesh = config, workdir, mesh
    self._batches, self._key, self._moved = batches, key, moved

  @property
  def name(self) -> str:
    """The run's, for people."""
    return remote.name_of(self._workdir)

  def keep(self, step: int) -> str:
    """Keeps the rows of a step's batch that this process has; returns how to say so."""
    name = f"step_{step}" + (f"_batch_{step + self._moved}" if self._moved else "") + (
        f"_process_{jax.process_index()}" if jax.process_count() > 1 else "")
    path = self._workdir / run_directory.DIVERGENCE / f"{name}.npz"
    temporary = path.with_name(f".{run_directory.unique()}.npz")
    try:
      path.parent.mkdir(exist_ok=True)
      np.savez(temporary, **cast(Any, self._rows(step)))
      temporary.replace(path)
    except OSError as error:
      with contextlib.suppress(OSError):
        temporary.unlink()
      return f"; its batch cannot be kept: {reason_of(error)}"
    return f"; its batch is kept in {run_directory.DIVERGENCE}/{path.name}"

  def where(self, step: int) -> str:
    """Says where in a step what is not finite first appeared."""
    try:
      with jax.set_mesh(self._mesh):
        found = self._before(step)
        return "somewhere: " + found if isinstance(found, str) else self._named(found, step)
    except UserError as error:
      return f"somewhere: it cannot be computed again: {error}"

  def _rows(self, step: int) -> loader.Batch:
    return self._batches.train_batch(step - 1 + self._moved)

  def _batch(self, step: int) -> Batch:
    return place_batch(self._mesh, self._rows(step), self._config.train.batch_size)

  def _before(self, step: int) -> State | str:
    """Computes the state before a step again, or says why not."""
    # As the run has it, which may have compiled it.
    trainer = make_trainer(replaced(self._config, {"train.seed": 0}), self._mesh)
    checkpoints = Checkpoints(self._workdir, reading=True)
    start = distributed.told(lambda: max((s for s in checkpoints.steps if s < step), default=-1))
    if start < 0 or step - start > _MOST:
      return f"the newest checkpoint before it lies more than {_MOST:,} steps back"
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    state = cast(State, checkpoints.restore(shapes, trainer.shardings, start))
    for between in range(start + 1, step):
      state, _ = trainer.step(state, self._batch(between), self._key)
    return state

  def _named(self, state: State, step: int) -> str:
    network = make_trainer(replaced(self._config, {"train.seed": 0}), self._mesh).network
    counting = _Counting()
    count = _program(Objective(self._config, network), counting)
    found = jax.device_get(jax.jit(count)(state, self._batch(step), self._key))
    text = _in_leaves(found["params"], "in the parameter", upwards=True)
    return text or _in_sites(found["sites"], counting.order) or (
        "in the logits or the loss, behind all sites" if not found["loss"] else
        _in_leaves(found["grads"], "in the gradient of", upwards=False)
        or "in the norm of the gradients, or in the parameters after the step: all that the step "
        "reads is finite")


class _Counting:
  """Telemetry that counts at every site what is not finite; `order` is that of the forward pass."""

  def __init__(self) -> None:
    self.order: list[str] = []

  def observer(self, weights_BxT: jax.Array) -> Callable[..., _Counts]:
    """Makes what probes call."""
    def observe(site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None) -> _Counts:
      if site not in self.order:
        self.order.append(site)
      return _count(x_BxTxD)

    return observe


def _count(x: jax.Array) -> _Counts:
  return {"nan": jnp.sum(jnp.isnan(x)), "infinite": jnp.sum(jnp.isinf(x)),
          "values": jnp.asarray(x.size)}


def _program(objective: Objective, counting: _Counting) -> Callable[..., Any]:
  """Makes what counts in the parameters, at the sites and in the gradients of one step."""
  def of_tree(tree: Any) -> dict[str, _Counts]:
    return {name: jax.vmap(_count)(leaf) if name.startswith("stacks/") else _count(leaf)
            for name, leaf in named_leaves(tree).items()}

  def count(state: State, batch: Batch, key: jax.Array) -> Any:
    def of_part(part: Batch, part_key: jax.Array | None) -> Any:
      grads, (means, sites) = jax.grad(objective.mean, has_aux=True)(
          state["params"], {}, part, part_key, cast(Telemetry, counting))
      return grads, jnp.isfinite(means["loss"]), sites

    def add(a: Any, b: Any) -> Any:
      return (jax.tree.map(jnp.add, a[0], b[0]), a[1] & b[1], jax.tree.map(jnp.add, a[2], b[2]))

    grads, is_finite, sites = objective.accumulated(
        of_part, add, batch, objective.dropout_key(state, key))
    grads = objective.network.trained(grads)
    return {"params": of_tree(state["params"]), "sites": sites, "loss": is_finite,
            "grads": of_tree(grads)}

  return count


def _in_sites(sites: Mapping[str, Mapping[str, Any]], order: list[str]) -> str:
  depth = max(len(np.atleast_1d(counts["nan"])) for counts in sites.values())
  inside = [site for site in order if len(sites[site]["nan"]) == depth]
  outside = [site for site in order if site not in inside]
  places = [(site, layer) for layer in range(depth) for site in inside] + [
      (site, 0) for site in outside]
  for site, layer in places:
    counts = {name: int(values[layer]) for name, values in sites[site].items()}
    if counts["nan"] or counts["infinite"]:
      return f"at {site} of layer {layer}{_said(counts)}" if site in inside else (
          f"at {site}{_said(counts)}")
  return ""


def _in_leaves(leaves: Mapping[str, Mapping[str, Any]], words: str, upwards: bool) -> str:
  """Names the first parameter in the order of the forward pass, or of the backward pass."""
  found = [(_height(name), int(layer), name) for name, counts in leaves.items()
           for layer in np.flatnonzero(np.atleast_1d(counts["nan"] + counts["infinite"]))]
  if not found:
    return ""
  height, layer, name = min(found) if upwards else max(found)
  counts = {key: int(np.atleast_1d(value)[layer]) for key, value in leaves[name].items()}
  return f"{words} {name}" + (f" of layer {layer}" if height == 1 else "") + _said(counts)


def _height(name: str) -> int:
  """Tells parameters below the blocks (0), in them (1) and above them (2) apart."""
  if name.startswith("stacks/"):
    return 1
  return 0 if re.match(r"(token_|position_)?embed|position|input", name) else 2


def _said(counts: Mapping[str, int]) -> str:
  return (f" ({counts['nan']:,} NaN and {counts['infinite']:,} infinite of "
          f"{counts['values']:,} numbers)")
