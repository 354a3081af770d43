"""Soaks a run: many steps, killed every so many and started again, beside one that is left alone.

  python -m tests.faults.soak --steps=20000 --kill_every=400,600 --seed=0 [--write]

The tiny model is trained twice. One run is a single process. The other is ended at moments that the
seed draws, by SIGKILL, SIGTERM or SIGINT, and started again until it is finished. In the end
metrics.jsonl and every array of the last checkpoint must be the same bits, the same checkpoints
must be there (and those of steps where a signal had the run save), and nothing half-written or set
aside. On the way both are asked what they hold: memory, threads, descriptors, and files beside the
checkpoints. The slopes of these over the run's life are printed, with what is allowed. Anything
more, or any process that ended as it should not, and the exit status is 1.

`--write` puts the table into docs/reliability.md.
"""

import argparse
import dataclasses
import math
import random
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.page import Section
from tests.faults.run import Bench, Ended, Fault

HELD = ("memory, MB", "threads", "descriptors", "files")
# What may come for every 1,000 steps, and what may come once: pools that fill, a save under way. A
# thread that every save left would be ten for 1,000 steps, at a save every hundred.
_ALWAYS, _ONCE = (1.0, 0.0, 0.0, 0.0), (20.0, 12.0, 24.0, 12.0)
# Steps below which pools that fill are all that grows.
_SHORT = 1000
# Statuses that a process may end with, by what ended it. One that was through ends with 0.
_STATUSES = {"kill": (-9,), "term": (75, -15), "int": (130, -2), "": ()}
# One in eight processes starts Python anew.
_FRESH = 0.125


@dataclasses.dataclass(frozen=True)
class Soaked:
  """One run that came to its end, or did not.

  Attributes:
    name: of its row.
    steps: of the run.
    ends: what ended its processes -> how many; `` is the run's end.
    samples: step, and what was held then, in the order of HELD.
    result: the record, and a hash of the last checkpoint's arrays.
    wrong: what it did that it should not.
  """

  name: str
  steps: int
  ends: Counter[str]
  samples: list[list[float]]
  result: Any
  wrong: list[str]

  @property
  def starts(self) -> int:
    """Number of processes that the run took."""
    return self.ends.total()

  def allowed(self) -> list[float]:
    """Gives what each slope may be at most; anything where a run is too short to have one.

    Each process has a file of TensorBoard's of its own, and one where the code has changed.
    """
    if self.steps < _SHORT:
      return [math.inf] * len(HELD)
    per = 1000 / self.steps
    found = [always + per * once for always, once in zip(_ALWAYS, _ONCE)]
    return [*found[:-1], found[-1] + 2 * per * (self.starts - 1)]

  def slopes(self) -> list[float]:
    """Fits what is held over the steps, for each 1,000."""
    steps = [sample[0] for sample in self.samples]
    return [1000 * slope(steps, [sample[i] for sample in self.samples])
            for i in range(1, 1 + len(HELD))]

  def breaches(self) -> list[str]:
    """Says what is not as it should be."""
    return self.wrong + [
        f"{self.name}: {what} grow by {found:.3g} every 1,000 steps; allowed are {most:.3g}"
        for what, found, most in zip(HELD, self.slopes(), self.allowed()) if not found <= most]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
  """Fits a line by the median of the slopes of all pairs (Theil and Sen), so that what is held for
  a moment, as by a save, does not count; without the first tenth, in which pools fill."""
  first = len(x) // 10
  pairs = [(y[j] - y[i]) / (x[j] - x[i]) for i in range(first, len(x))
           for j in range(i + 1, len(x)) if x[i] != x[j]]
  return statistics.median(pairs) if pairs else 0.0


def soak(bench: Bench, name: str, every: tuple[int, int] | None, rng: random.Random) -> Soaked:
  """Trains one run to its end, ended after so many steps again and again, or never."""
  workdir, samples = bench.folder / name, bench.folder / f"{name}.samples"
  steps, between = bench.fields["train.steps"], bench.fields["train.checkpoint_every"]
  ends, wrong = Counter[str](), list[str]()
  # Each process comes at least so far.
  most = 3 + steps // max(1, (every[0] if every else steps) - between)
  while not (workdir / "DONE").exists() and not wrong:
    fault = drawn(every, rng) if every else None
    ended = bench.process(workdir, 1, fault, fault is not None and fault.fresh, samples)
    kind = fault.kind if fault and ended.status != 0 else ""
    ends[kind] += 1
    wrong += [f"{name}: start {ends.total()}: {line}" for line in faults_of(ended, kind)]
    if ends.total() > most:
      wrong.append(f"{name}: {most} processes came to no end")
  wrong += left(workdir, steps, between, ends) if not wrong else []
  result = bench.result(workdir, 1) if not wrong else None
  held = [[float(word) for word in line.split()] for line in samples.read_text().splitlines()]
  return Soaked(name, steps, ends, held, result, wrong)


def drawn(every: tuple[int, int], rng: random.Random) -> Fault:
  """Draws what ends a process: after how many steps, and how."""
  return Fault(rng.choice(("kill", "kill", "kill", "term", "int")), "step", rng.randint(*every) - 1,
               rng.uniform(0, 0.1), rng.randrange(2 ** 30), 1, rng.random() < _FRESH)


def faults_of(ended: Ended, kind: str) -> list[str]:
  """Says what a process did that it should not."""
  found = [ended.fault()] if ended.fault() else []
  if ended.status not in (0, *_STATUSES[kind]):
    found.append(f"status {ended.status} after {kind or 'nothing'}")
  set_aside = [line for line in ended.lines if "damaged" in line or "set aside" in line]
  return [f"{one}: {ended.lines[-3:]}" for one in found] + set_aside


def left(workdir: Path, steps: int, between: int, ends: Counter[str]) -> list[str]:
  """Says what a finished run left that it should not have."""
  names = {path.name for path in (workdir / "checkpoints").iterdir()}
  kept = {str(step) for step in (0, 1, steps, *range(between, steps, between))}
  extra = names - kept
  found = [f"{workdir.name}: no checkpoint {name}" for name in sorted(kept - names)]
  if not all(name.isdecimal() for name in extra) or len(extra) > ends["term"] + ends["int"]:
    found.append(f"{workdir.name}: left {sorted(extra)} among the checkpoints")
  counts = {sum(path.is_file() for path in (workdir / "checkpoints" / name).rglob("*"))
            for name in kept & names}
  if max(counts, default=0) > 2 * min(counts, default=0):
    found.append(f"{workdir.name}: checkpoints of {min(counts)} to {max(counts)} files")
  return found


def table(runs: Sequence[Soaked]) -> str:
  """Makes a table in Markdown of what the runs held, a row a run."""
  lines = ["| run | steps | starts | " + " | ".join(
      f"{what}, at the end | for 1,000 steps (allowed)" for what in HELD) + " | the same bits |",
      "|" + " --- |" * (4 + 2 * len(HELD))]
  for run in runs:
    cells = [cell for i, (found, most) in enumerate(zip(run.slopes(), run.allowed()))
             for cell in (f"{run.samples[-1][1 + i]:.0f}" if run.samples else "none",
                          f"{found:.3f} ({most:.3f})")]
    how = ", ".join(f"{count} by {kind}" for kind, count in sorted(run.ends.items()) if kind)
    same = run.result is not None and run.result == runs[0].result
    lines.append(f"| {run.name} | {run.steps} | {run.starts}{f' ({how})' if how else ''} | "
                 + " | ".join(cells) + f" | {'yes' if same else 'NO'} |")
  return "\n".join(lines)


def run(steps: int, every: tuple[int, int], checkpoint_every: int, seed: int
        ) -> tuple[list[Soaked], list[str]]:
  """Soaks both runs; returns them, and what is not as it should be."""
  folder = Path(tempfile.mkdtemp(prefix="of_jax_soak_"))
  bench = Bench(folder, {
      "train.steps": steps, "train.checkpoint_every": checkpoint_every,
      "train.checkpoint_log_base": steps, "train.eval_every": 2 * checkpoint_every})
  # What is forked has it in memory, and reads where compiled programs are when it is imported.
  import of_jax.commands.train  # noqa: F401
  try:
    runs = [soak(bench, "left alone", None, random.Random(seed)),
            soak(bench, "ended and started", every, random.Random(seed))]
  finally:
    bench.close()
    shutil.rmtree(folder, ignore_errors=True)
  breaches = [line for one in runs for line in one.breaches()]
  if runs[0].result != runs[1].result:
    breaches.append("the two runs do not end in the same bits")
  return runs, breaches


def main(arguments: list[str]) -> int:
  """Runs what the command line asks for; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=20_000)
  parser.add_argument("--kill_every", default="400,600", help="fewest and most steps of a process")
  parser.add_argument("--checkpoint_every", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--write", action="store_true", help="put the table into the page")
  asked = parser.parse_args(arguments)
  section = Section("soak", arguments)
  low, high = map(int, asked.kill_every.split(","))
  if not asked.checkpoint_every < low <= high:
    parser.error("--kill_every=LOW,HIGH: at least a checkpoint must lie between two ends")
  runs, breaches = run(asked.steps, (low, high), asked.checkpoint_every, asked.seed)
  found = table(runs)
  print("\n".join([found, *breaches]))
  if asked.write and not breaches:
    section.write(found)
  return 1 if breaches else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
