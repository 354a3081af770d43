"""python -m tests.telemetry.update_accuracy: writes the tables of docs/moment_updates.md.

Enters: a config and sizes of steps. Leaves: the moment updates that the side program measures, the
activations that it made them of, and those of forward passes in float64; and how far the first is
from sums by NumPy in float64 over the others.
"""

import dataclasses
import datetime
import functools
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"], os.environ["JAX_NUM_CPU_DEVICES"] = "cpu", "8"

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from of_jax.config import Config, apply_overrides
from of_jax.config.fields import replaced
from of_jax.models.functional import build_network
from of_jax.quantise.in_training import quantised_metrics
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.trainer import make_trainer
from tests.planted import planted

Floats = npt.NDArray[np.float64]
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "moment_updates.md"
MARKS = ("<!-- begin: python -m tests.telemetry.update_accuracy -->\n", "\n<!-- end -->")
UPDATES = ("m4_u1", "m4_u2", "m4_u3", "m4_u4")
IDS = ("m2", "m4", "m2_u", *UPDATES)
# A user's family of kind change, which keeps the activations beside the moments made of them.
KEPT = {"telemetry/families/kept.py": f'''
"""Moment updates of a test, and the activations that they are made of."""

import jax.numpy as jnp

from of_jax.telemetry.families.moment_updates import MomentUpdates

KIND = "change"
SITES = ()
EVERY = 1
METRICS = {{"kept": ("full", "of a test", "ratio", "any", "this test"),
           "kept_before": ("full", "of a test", "ratio", "any", "this test"),
           "kept_after": ("full", "of a test", "ratio", "any", "this test")}}


class Kept(MomentUpdates):

  def of_change(self, before, after):
    return {{**super().of_change(before, after), "x": before.raw_BxTxD, "y": after.raw_BxTxD}}

  def finish(self, s, no_first):
    found = super().finish(s, no_first)
    return {{"kept": jnp.stack([found[id_] for id_ in {IDS}], -1), "kept_before": s["x"],
            "kept_after": s["y"]}}
'''}
SETTINGS = {
    "model.width": "64", "model.depth": "3", "model.heads": "4", "model.embedding_scale": "8",
    "train.batch_size": "8", "train.sequence_length": "64", "data.vocab_size": "64",
    "data.corpus": "tokens:none", "optim.warmup_steps": "0", "mesh.data": "1",
    "telemetry.level": "full", "telemetry.metrics": "kept,kept_before,kept_after"}


@dataclasses.dataclass(frozen=True)
class Found:
  """One site and layer before and after a step.

  Attributes:
    measured: id -> what the side program says.
    same: before and after, float64 [tokens, width], the activations that it read.
    passes: before and after, of forward passes in a type.
  """

  measured: dict[str, float]
  same: tuple[Floats, Floats]
  passes: dict[str, tuple[Floats, Floats]]


def make_config(**fields: Any) -> Config:
  """Makes the toy's config; keywords as `model__remat="full"`."""
  texts = {name.replace("__", "."): str(value) for name, value in fields.items()}
  return apply_overrides(Config(), list({**SETTINGS, **texts}.items()))


def a_batch(config: Config, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
  """Draws tokens, each 7 times the one before in 4 cases of 5, and any else."""
  rows = config.train.batch_size, config.train.sequence_length
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, 64, (rows[0], rows[1] + 1)).astype(np.int32)
  for i in range(rows[1]):
    follows = rng.random(rows[0]) < 0.8
    tokens[:, i + 1] = np.where(follows, tokens[:, i] * 7 % 64, tokens[:, i + 1])
  return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones(rows, np.float32)}


def steps_of(config: Config, sizes: Sequence[float], types: Sequence[str] = ("float64",)
             ) -> list[dict[tuple[str, int], Found]]:
  """Measures steps of some sizes along a direction that the optimiser gives, a site and layer each.

  Call it where `planted` has KEPT.

  Args:
    sizes: root mean square of a step over that of the parameters.
    types: of the forward passes to compare with.
  """
  mesh, batch = make_mesh(config), a_batch(config)
  with jax.set_mesh(mesh):
    trainer, placed = make_trainer(config, mesh), place_batch(mesh, batch)
    state = trainer.init(jax.random.key(0))
    start = trainer.copied(state["params"])
    stepped = jax.device_get(trainer.step(state, placed, jax.random.key(1))[0]["params"])
    before, result = jax.device_get(start), []
    for size in sizes:
      after = moved(before, stepped, size)
      kept = jax.device_get(trainer.side_programs["kept"].run(
          start, jax.device_put(after, trainer.shardings["params"]), placed))
      result.append(found_of(kept, {dtype: [
          activations(config, params, batch["inputs"], dtype) for params in (before, after)]
                                    for dtype in types}))
  return result


def moved(before: Any, stepped: Any, size: float) -> Any:
  """Takes a step of another size in the direction of the one from `before` to `stepped`."""
  direction = jax.tree.map(lambda a, b: np.float64(b) - a, before, stepped)
  unit = _rms(before) / _rms(direction)
  return jax.tree.map(lambda p, d: np.float32(p + size * unit * d), before, direction)


def found_of(kept: Any, passes: Mapping[str, Sequence[Any]]) -> dict[tuple[str, int], Found]:
  """Sorts what the program of KEPT gives, and activations by other passes, by site and layer."""
  return {(site, layer): Found(
      dict(zip(IDS, np.float64(found["kept"][layer]))),
      (_flat(found["kept_before"][layer]), _flat(found["kept_after"][layer])),
      {dtype: (_flat(before[site][layer]), _flat(after[site][layer]))
       for dtype, (before, after) in passes.items()})
          for site, found in kept.items() for layer in range(len(found["kept"]))}


def activations(config: Config, params: Any, inputs: npt.NDArray[Any], dtype: str
                ) -> dict[str, Floats]:
  """Computes activations, site -> [layers, batch, time, width], by a forward pass in a type."""
  with jax.enable_x64(dtype == "float64"):
    wide = np.float64 if dtype == "float64" else np.float32
    kept = jax.device_get(_forward(replaced(config, {"model.compute_dtype": dtype}))(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, wide), params), inputs))
  assert all(x.dtype == dtype for x in kept.values()), dtype
  return {site: x.astype(np.float64) for site, x in kept.items()}


@functools.lru_cache(maxsize=4)
def _forward(config: Config) -> Any:
  network = build_network(config)
  return jax.jit(lambda params, inputs: network.stream(
      params, inputs, observe=lambda site, x, _: x)[2])


def reference(before: Floats, after: Floats) -> dict[str, float]:
  """Computes the moment updates of activations [tokens, width], in float64, and three more:
  what is added to m4; mean_j |2 a b|, the unit of errors; and the root mean square of D over X."""
  change = after - before
  a, b, c = np.mean(before ** 2, 0), 2 * np.mean(before * change, 0), np.mean(change ** 2, 0)
  return {"m2": np.mean(a), "m4": np.mean(a ** 2), "m2_u": np.mean(b + c),
          "m4_u1": np.mean(2 * a * b), "m4_u2": np.mean(b ** 2 + 2 * a * c),
          "m4_u3": np.mean(2 * b * c), "m4_u4": np.mean(c ** 2),
          "total": np.mean(np.mean(after ** 2, 0) ** 2 - a ** 2),
          "unit": np.mean(np.abs(2 * a * b)), "size": np.sqrt(np.mean(c) / np.mean(a))}


def error(found: dict[str, float], truth: dict[str, float]) -> float:
  """Finds the largest error of u1 to u4, in units of mean_j |2 a b|."""
  return max(abs(found[id_] - truth[id_]) for id_ in UPDATES) / truth["unit"]


def error_of_sum(found: dict[str, float], truth: dict[str, float]) -> float:
  """Finds by how much u1 to u4 add up to another number than m4's change, relative to that."""
  return abs(sum(found[id_] for id_ in UPDATES) - truth["total"]) / abs(truth["total"])


def _rms(tree: Any) -> float:
  leaves = [np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)]
  return float(np.sqrt(np.mean(np.concatenate(leaves) ** 2)))


def _flat(x_BxTxD: npt.NDArray[Any]) -> Floats:
  return np.float64(x_BxTxD).reshape(-1, x_BxTxD.shape[-1])


SIZES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ROWS = {"float32": {}, "bfloat16": {"model__compute_dtype": "bfloat16"},
        "bfloat16, mesh 1 x 2 x 4": {"model__compute_dtype": "bfloat16", "mesh__fsdp": 2,
                                     "mesh__tensor": 4}}
COST = {"model__width": 256, "model__depth": 4, "model__heads": 4, "train__batch_size": 16,
        "train__sequence_length": 128, "telemetry__metrics": "m4_u1"}


def accuracy_table() -> list[str]:
  """Measures the errors of a toy's moment updates, a row a config and size of step."""
  lines = ["| compute type | step / parameters | D / X | u1 to u4 | their sum "
           "| against float64 passes | bfloat16 passes would have |",
           "|---|---|---|---|---|---|---|"]
  for name, fields in ROWS.items():
    config = make_config(**fields)
    for size, found in zip(SIZES, steps_of(config, SIZES, ("float64", "bfloat16"))):
      sites = found.values()
      same = [(one.measured, reference(*one.same)) for one in sites]
      exact, narrow = ([reference(*one.passes[dtype]) for one in sites]
                       for dtype in ("float64", "bfloat16"))
      changes = [truth["size"] for truth in exact]
      columns = (max(error(*both) for both in same), max(error_of_sum(*both) for both in same),
                 max(error(one.measured, truth) for one, truth in zip(sites, exact)),
                 max(error(*both) for both in zip(narrow, exact)))
      lines.append(f"| {name} | {size:.0e} | {min(changes):.0e} to {max(changes):.0e} | "
                   + " | ".join(f"{value:.0e}" for value in columns) + " |")
  return lines


def cost_table() -> list[str]:
  """Measures CPU seconds of a step, and of the moment updates' program, of a larger model."""
  lines = ["| compute type | CPU s of a step | CPU s of `moment_updates` | ratio |",
           "|---|---|---|---|"]
  for dtype in ("float32", "bfloat16"):
    config = make_config(**COST, model__compute_dtype=dtype)
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
      trainer, batch = make_trainer(config, mesh), place_batch(mesh, a_batch(config))
      state = trainer.init(jax.random.key(0))
      seconds: dict[str, list[float]] = {"step": [], "program": []}
      for _ in range(6):
        before = trainer.copied(state["params"])
        begun = time.process_time()
        state = jax.block_until_ready(trainer.step(state, batch, jax.random.key(1))[0])
        seconds["step"].append(time.process_time() - begun)
        begun = time.process_time()
        jax.block_until_ready(trainer.side_programs["moment_updates"].run(
            before, state["params"], batch))
        seconds["program"].append(time.process_time() - begun)
    # The first of each holds its compilation.
    step, program = (statistics.median(each[1:]) for each in seconds.values())
    lines.append(f"| {dtype} | {step:.2f} | {program:.2f} | {program / step:.2f} |")
  return lines


def quantised_table() -> list[str]:
  """Measures what W8A8 costs a toy that bfloat16 trained, by passes in either type."""
  lines = ["| steps | batch | `quantised_loss_increase` | by bfloat16 passes |",
           "|---|---|---|---|"]
  config = make_config(model__compute_dtype="bfloat16", telemetry__metrics="rms",
                       telemetry__quantised_perplexity_every=1)
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    by_type = (trainer.side_programs["quantised"].run,
               jax.jit(quantised_metrics(trainer.network, config)))
    for step in range(1, 41):
      state = trainer.step(state, place_batch(mesh, a_batch(config, seed=step)),
                           jax.random.key(1))[0]
      for seed in (1001, 1002, 1003) if step in (10, 40) else ():
        batch = place_batch(mesh, a_batch(config, seed=seed))
        increases = (float(run(state["params"], batch)["final"]["quantised_loss_increase"][0])
                     for run in by_type)
        lines.append(f"| {step} | {seed - 1000} | "
                     + " | ".join(f"{value:.1e}" for value in increases) + " |")
  return lines


def main() -> None:
  page = PAGE.read_text()
  head, _, rest = page.partition(MARKS[0])
  with tempfile.TemporaryDirectory() as folder, planted(pathlib.Path(folder), KEPT):
    tables = [*accuracy_table(), "", *cost_table(), "", *quantised_table()]
  where = (f"{os.cpu_count()} {platform.machine()} CPUs, Python {platform.python_version()}, "
           f"jax {jax.__version__}, {datetime.date.today()}.")
  PAGE.write_text(head + MARKS[0] + "\n".join([*tables, "", where]) + MARKS[1]
                  + rest.partition(MARKS[1])[2])


if __name__ == "__main__":
  main()
