"""Times the train step: with telemetry and without, under several optimisers, or of many runs that
are trained together, interleaved.

  python -m experiments.benchmark --sizes=smoke --widths=128,256 --telemetry=off,basic
  python -m experiments.benchmark --sizes=smoke --optimisers=adamw,adamp,muon --telemetry=off
  python -m experiments.benchmark --sizes=tiny --members=16 --telemetry=basic

Every variant is compiled first; then blocks of steps are run in turn, A B .. B A .., and each
block is compared with the first variant's of the same round, so that a neighbour on the machine
slows both sides. Quote the ratios: wall, and CPU time over all threads. A block is as long as
--block, or the next multiple of every optim.precondition_frequency, so that each has its share of
refreshes. --members=N compares N runs one after another, each compiled for itself alone, with the
same N as members of one program (of_jax.sweep.trainer): in turn, and at once; every time is that
of a step of all. A config field given with --config.PATH=VALUE holds for all.
"""

import dataclasses
import math
import statistics
import sys
import time
from typing import Any

from absl import flags

from of_jax import config as config_lib
from of_jax.commands import cli
from of_jax.config import Config, presets
from of_jax.errors import UserError

_SIZES = flags.DEFINE_list("sizes", ["smoke"], f"of: smoke, {', '.join(presets.SIZES)}")
_WIDTHS = flags.DEFINE_list("widths", [], "model widths in place of each size's own")
_TELEMETRY = flags.DEFINE_list("telemetry", ["off", "basic"],
                               "levels; ratios are to the first row of a width")
_OPTIMIZERS = flags.DEFINE_list(
    "optimisers", [], "optim.name of each, and fields of optim as in soap:max_precond_dim=512; "
    "default: the size's own")
_MEMBERS = flags.DEFINE_integer(
    "members", 0, "runs, differing in seed and learning rate, to train together; 0: no such rows",
    lower_bound=0, upper_bound=1_000)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "rounds, in each of which every variant runs a block",
                               lower_bound=1, upper_bound=1_000_000)
_BLOCK = flags.DEFINE_integer("block", 4, "steps of a block", lower_bound=1, upper_bound=1_000_000)
flags.DEFINE_string("out", None, "folder to leave benchmark.json in; default: none is left")


@dataclasses.dataclass
class Variant:
  """Compiled train step with a state of its own, and the times of its blocks.

  Attributes:
    label: its row's name.
    tokens: tokens of a step.
    compile_s: seconds of compiling.
    peak_memory_bytes: of one step, as the compiler says.
    step, state, batch: the step is called as step(state, *batch).
    wall, cpu: seconds a step, and of CPU over all threads, for each block that was run.
  """

  label: str
  tokens: int
  compile_s: float
  peak_memory_bytes: int
  step: Any
  state: Any
  batch: Any
  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)

  def run(self, steps: int) -> None:
    """Runs a block of `steps` steps and notes its seconds a step."""
    import jax
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      self.state, metrics = self.step(self.state, *self.batch)
    jax.block_until_ready((self.state, metrics))
    self.wall.append((time.perf_counter() - wall) / steps)
    self.cpu.append((time.process_time() - cpu) / steps)

  def row(self, base: "Variant") -> dict[str, Any]:
    """Returns the row of benchmark.json; ratios are medians over rounds, paired with `base`."""
    def ratio(ours: list[float], theirs: list[float]) -> float:
      return statistics.median(a / b for a, b in zip(ours, theirs))

    median = statistics.median(self.wall)
    return {"label": self.label, "median_s": median,
            "p10_s": sorted(self.wall)[len(self.wall) // 10],
            "cpu_s": statistics.median(self.cpu), "ratio": ratio(self.wall, base.wall),
            "cpu_ratio": ratio(self.cpu, base.cpu), "tokens_per_s": self.tokens / median,
            "compile_s": self.compile_s, "peak_memory_bytes": self.peak_memory_bytes}


def prepare(label: str, config: Config) -> Variant:
  """Compiles the config's measured step on random tokens."""
  import jax

  from of_jax.train.sharding import make_mesh, place_batch
  from of_jax.train.trainer import make_trainer
  mesh = make_mesh(config)
  batch = place_batch(mesh, random_batch(config))
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    return compiled_variant(label, config, trainer.step_measured, state,
                            (batch, jax.random.key(1)))


def random_batch(config: Config) -> dict[str, Any]:
  """Draws a batch of random tokens of the config's sizes, int32 [batch, length]."""
  import numpy as np
  shape = (config.train.batch_size, config.train.sequence_length)
  tokens = np.random.default_rng(0).integers(0, config.data.vocab_size, shape).astype(np.int32)
  return {"inputs": tokens, "targets": tokens, "weights": np.ones(shape, np.float32)}


def compiled_variant(label: str, config: Config, step: Any, state: Any, arguments: Any,
                     members: int = 1) -> Variant:
  """Compiles a step; call it where the step's mesh is set.

  Args:
    label: the row's name.
    config: resolved; says how many tokens a step reads.
    step: a jitted function of the state and the arguments.
    state: what it begins with.
    arguments: the others, such as the batch.
    members: how many runs the step trains.
  """
  begun = time.perf_counter()
  compiled = step.lower(state, *arguments).compile()
  compile_s = time.perf_counter() - begun
  memory = compiled.memory_analysis()
  peak = (memory.argument_size_in_bytes + memory.temp_size_in_bytes
          + memory.output_size_in_bytes - memory.alias_size_in_bytes)
  tokens = members * config.train.batch_size * config.train.sequence_length
  return Variant(label, tokens, compile_s, peak, compiled, state, arguments)


def prepare_members(label: str, config: Config, count: int) -> list[Variant]:
  """Compiles `count` runs that differ in seed and rate: one after another, in turn, and at once.

  The first compiles one of its programs, which all runs take: its compile_s and memory are that
  one's.
  """
  import jax

  from of_jax.sweep.trainer import Sweep
  from of_jax.train.startup import initial_state
  configs = [config_lib.apply_overrides(config, [
      ("train.seed", str(i)), ("mesh.data", "1"),
      ("optim.learning_rate", str(config.optim.learning_rate * (1 + i / count)))])
      for i in range(count)]
  made = []
  for at_once in (False, True):
    sweep = Sweep(configs, at_once=at_once)
    states = [initial_state(own, sweep.trainer_of(own), None) for own in configs]
    arguments = (sweep.stacked([random_batch(own) for own in configs]), sweep.keys())
    how = "at once" if at_once else "in turn"
    made.append(compiled_variant(f"{label}, {count} {how}", config, sweep.trainer.step_measured,
                                 sweep.stacked(states), arguments, count))
  single = prepare(f"{label}, {count} one after another", configs[0])
  single.tokens *= count
  single.state = states
  compiled, (batch, _) = single.step, single.batch
  single.batch = (batch, [jax.random.key(i) for i in range(count)])

  def one_after_another(states: list[Any], batch: Any, keys: list[Any]) -> Any:
    stepped = [compiled(state, batch, key) for state, key in zip(states, keys)]
    return [state for state, _ in stepped], [metrics for _, metrics in stepped]

  single.step = one_after_another
  return [single, *made]


def configs(size: str) -> list[tuple[str, Config]]:
  """Lists (label, config) of every width of a size with every optimiser and telemetry level.

  Raises:
    UserError: no such size, a bad field, or an override of what a flag decides.
  """
  if size != "smoke" and size not in presets.SIZES:
    raise UserError(f"--sizes={size}: no such size; there are smoke, {', '.join(presets.SIZES)}")
  cli.refuse_overrides({"model.width": "--widths", "optim.name": "--optimisers",
                        "telemetry.level": "--telemetry"})
  base = presets.smoke() if size == "smoke" else presets.preset(size)
  result = []
  for width in _WIDTHS.value or [str(base.model.width)]:
    for optimizer in _OPTIMIZERS.value or [base.optim.name]:
      name, *own = optimizer.split(":")
      fields = [tuple(field.partition("=")[::2]) for field in own]
      for level in _TELEMETRY.value:
        overrides = [("model.width", width), ("optim.name", name),
                     *((f"optim.{field}", text) for field, text in fields), *cli.overrides(),
                     ("telemetry.level", level)]
        label = f" {optimizer}" if _OPTIMIZERS.value else ""
        result.append((f"{size} width {width}{label} {level}",
                       config_lib.apply_overrides(base, overrides)))
  return result


def block_steps(compared: list[Config]) -> int:
  """Returns the steps of a block: whole periods of every optimiser's refresh."""
  period = math.lcm(*(config.optim.precondition_frequency or 1 for config in compared))
  return math.ceil(_BLOCK.value / period) * period


def main() -> None:
  out = cli.output_folder("out")
  groups = [configs(size) for size in _SIZES.value]
  from rich.console import Console
  from rich.table import Table
  rows, block = [], block_steps([config for group in groups for _, config in group])
  for group in groups:
    compared = len(_TELEMETRY.value) * max(1, len(_OPTIMIZERS.value))
    for start in range(0, len(group), compared):
      variants = [variant for item in group[start:start + compared] for variant in (
          prepare_members(*item, _MEMBERS.value) if _MEMBERS.value else [prepare(*item)])]
      for variant in variants:
        variant.run(block)
        variant.wall.clear()
        variant.cpu.clear()
      for round_ in range(_ROUNDS.value):
        for variant in variants if round_ % 2 == 0 else variants[::-1]:
          variant.run(block)
      rows += [variant.row(variants[0]) for variant in variants]
  table = Table("step", "median s", "p10 s", "cpu s", "wall ratio", "cpu ratio", "tokens/s",
                "compile s", "peak MB")
  for row in rows:
    table.add_row(row["label"], f"{row['median_s']:.4f}", f"{row['p10_s']:.4f}",
                  f"{row['cpu_s']:.4f}", f"{row['ratio']:.3f}", f"{row['cpu_ratio']:.3f}",
                  f"{row['tokens_per_s']:,.0f}", f"{row['compile_s']:.1f}",
                  f"{row['peak_memory_bytes'] / 1e6:,.1f}")
  Console(width=None if sys.stdout.isatty() else 140).print(table)
  print(f"{_ROUNDS.value} rounds of {block} steps; ratios to the first row of a width")
  if _MEMBERS.value:
    print(f"times are of a step of all {_MEMBERS.value} runs; alone, each run whose rate differs "
          "compiles its own program")
  if out is not None:
    from of_jax.storage import run_directory
    from of_jax.train.environment import machine
    out.mkdir(parents=True, exist_ok=True)
    run_directory.write_json(out / "benchmark.json", {"machine": machine(), "rows": rows})
    print(out / "benchmark.json")


if __name__ == "__main__":
  cli.run(main)
