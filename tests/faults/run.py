"""Injects faults into runs, starts them again, and compares with runs that nothing happened to.

  python -m tests.faults.run --seed=0 --count=400 [--kinds=kill,full] [--workers=2] [--show]
      [--write]

Every trial trains a tiny model, alone or two members together, with one fault at a moment that a
seed draws: while it starts, compiles, steps, evaluates, writes its record or saves. Then it is
started again until it is finished. Of each process it is asked that it ended in time, with a status
that says how, and with no traceback and at most one line of error; of the run in the end that
metrics.jsonl and the digests of its last checkpoint are those of the undisturbed run, bit for bit.
Where something was damaged, a refusal in one line will do. Anything else is a fault of ours, and
the command ends with status 1.

Processes are forked from one that has the libraries in memory, and share compiled programs; one
trial in eight starts Python anew. Full disks are a small tmpfs, where this process may mount one.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Compiling is most of a short run's time; the bits of all runs are of the same programs.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 "
                      "--xla_cpu_parallel_codegen_split_count=1")
os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1", OPENBLAS_NUM_THREADS="1",
                  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                  JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1")

import numpy as np  # noqa: E402

from of_jax.errors import UNFORESEEN  # noqa: E402
from tests.faults.page import Section  # noqa: E402

ROOT = Path(__file__).parents[2]
STEPS = 24
FIELDS = {
    "model.width": 16, "model.depth": 1, "model.heads": 2, "model.embedding_scale": 8,
    "train.steps": STEPS, "train.batch_size": 8, "train.sequence_length": 16,
    "train.eval_every": 6, "train.checkpoint_every": 4, "train.checkpoint_log_base": 24,
    "train.tensorboard": "true", "data.vocab_size": 64, "data.eval_sequences": 8,
    "optim.warmup_steps": 0, "telemetry.level": "off"}
PHASES = ("start", "compile", "step", "evaluate", "record", "save")
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
KINDS = (*SIGNALS, "int twice", "full", "large", "gone", "descriptors", "read-only", "clock",
         "damage", "two processes")
_SECONDS, _SECONDS_A_STEP = 600, 0.1
OUTCOMES = ("bit-equal", "one line", "lost", "wrong", "traceback", "hang")


@dataclasses.dataclass(frozen=True)
class Fault:
  """One fault, drawn from a seed."""

  kind: str
  phase: str
  call: int
  delay: float
  number: int
  members: int
  fresh: bool

  @classmethod
  def draw(cls, seed: int, kinds: tuple[str, ...]) -> "Fault":
    """Draws a fault."""
    rng = random.Random(seed)
    kind, phase = rng.choice(kinds), rng.choice(PHASES)
    most = {"start": 1, "compile": 1, "step": STEPS, "evaluate": 4, "record": STEPS, "save": 7}
    delay = rng.uniform(0, {"start": 2.0, "compile": 2.0}.get(phase, 0.05))
    return cls(kind, phase, rng.randrange(most[phase]), delay, rng.randrange(2 ** 30),
               2 if rng.random() < 0.2 else 1, rng.random() < 0.125)


@dataclasses.dataclass(frozen=True)
class Ended:
  """One process that ended: its status, negative for a signal, None for a hang, and its lines."""

  status: int | None
  lines: list[str]

  def fault(self) -> str:
    """Names what no process may do."""
    text = "\n".join(self.lines)
    if self.status is None:
      return "hang"
    # Killed, or told before it listened.
    killed = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
    if self.status not in (0, 1, 75, 130, *killed) or re.search(
        rf"Traceback|Fatal Python|Segmentation|Exception ignored|{UNFORESEEN}", text):
      return "traceback"
    # What libraries log of it beside; a FutureWarning is of the date alone, which `clock` sets.
    if self.status == 1 and re.search(
        r"(?m)^[WEF]\d{4} |WARNING|(?<!Future)Warning: |never awaited|never retrieved", text):
      return "traceback"
    errors = [line for line in self.lines if line.startswith("error: ")]
    return "" if self.status != 1 or len(errors) == 1 else "traceback"


class Bench:
  """Place where trials run: a corpus, compiled programs, the undisturbed runs, room for others."""

  def __init__(self, folder: Path, fields: Mapping[str, Any] | None = None):
    """`fields`: set beside FIELDS."""
    self.folder, self.fields = folder, {**FIELDS, **(fields or {})}
    self.tokens = folder / "tokens.npy"
    rng = np.random.default_rng(0)
    np.save(self.tokens, rng.integers(0, 64, 20_000).astype(np.uint16))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    self.small = folder / "small"
    self.small.mkdir()
    self.is_mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(self.small)],
        capture_output=True).returncode == 0
    self.whole: dict[int, dict[str, Any]] = {}

  def close(self) -> None:
    """Unmounts what was mounted."""
    if self.is_mounted:
      subprocess.run(["umount", "-l", str(self.small)], capture_output=True)

  def undisturbed(self, members: int) -> dict[str, Any]:
    """Trains, once, what nothing happens to."""
    if members not in self.whole:
      workdir = self.folder / f"whole_{members}"
      found = self.process(workdir, members, None, False)
      assert found.status == 0, found
      self.whole[members] = self.result(workdir, members)
    return self.whole[members]

  def process(self, workdir: Path, members: int, fault: Fault | None, fresh: bool,
              samples: Path | None = None) -> Ended:
    """Runs one process to its end."""
    return self.wait(*self.start(workdir, members, fault, fresh, samples))

  def start(self, workdir: Path, members: int, fault: Fault | None, fresh: bool,
            samples: Path | None = None) -> tuple[int, Path]:
    """Starts a process; returns its id and the file of its lines.

    `samples` is a file for what it holds on the way, see tests.faults.child.sampled.
    """
    said = self.folder / f"said_{os.getpid()}_{time.monotonic_ns()}"
    arguments = json.dumps({"workdir": str(workdir), "members": members,
                            "tokens": str(self.tokens), "fields": self.fields,
                            "samples": str(samples or ""),
                            "small": str(self.small) if self.is_mounted else "",
                            "fault": dataclasses.asdict(fault) if fault else None})
    process = os.fork()
    if process == 0:
      out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
      os.dup2(out, 1)
      os.dup2(out, 2)
      if fresh:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "tests.faults.child", arguments])
      from tests.faults import child
      child.main(arguments)
    return process, said

  def wait(self, process: int, said: Path) -> Ended:
    """Waits for a process, and ends one that hangs.

    That is one that does nothing for _SECONDS, or works for more of the processor's time than that
    and its steps may take: other processes of a busy machine do not count.
    """
    most = _SECONDS + self.fields["train.steps"] * _SECONDS_A_STEP
    moved, used, status = time.monotonic(), 0.0, None
    while True:
      found, code = os.waitpid(process, os.WNOHANG)
      if found:
        status = os.waitstatus_to_exitcode(code)
        break
      now = worked(process)
      if now > used + 0.1:
        moved, used = time.monotonic(), now
      if used > most or time.monotonic() > moved + _SECONDS:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        break
      time.sleep(0.02)
    lines = said.read_text(errors="replace").splitlines()
    said.unlink()
    return Ended(status, lines)

  def result(self, workdir: Path, members: int) -> dict[str, Any]:
    """Reads what a finished run left: its record, and a hash of its last checkpoint's arrays."""
    runs = [workdir / name for name in names(members)]
    # In a process of its own: this one forks, and must not start the threads of a reader.
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
      from tests.faults import child
      child.digests(runs, self.fields["train.steps"], write)
    os.close(write)
    with os.fdopen(read) as file:
      digests = file.read().split()
    os.waitpid(process, 0)
    if len(digests) != members:
      raise OSError("a checkpoint cannot be read")
    return {str(i): ((run / "metrics.jsonl").read_bytes(), found)
            for i, (run, found) in enumerate(zip(runs, digests))}


def worked(process: int) -> float:
  """Gives the seconds of the processor that a process of this one has used."""
  try:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return 0.0
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def names(members: int) -> list[str]:
  """Names the members' folders in a work directory; a single run is in the directory itself."""
  return [""] if members == 1 else [f"member_{i}" for i in range(members)]


@contextmanager
def room(bench: Bench, fault: Fault) -> Iterator[Path]:
  """Gives a trial its folder: on the small disk where that is to be full."""
  on_small = fault.kind in ("full", "read-only") and bench.is_mounted
  folder = Path(tempfile.mkdtemp(dir=bench.small if on_small else bench.folder))
  try:
    yield folder / "run"
  finally:
    shutil.rmtree(folder, ignore_errors=True)
    (bench.small / "filler").unlink(missing_ok=True)


def trial(bench: Bench, fault: Fault) -> tuple[str, list[Ended]]:
  """Runs one trial; returns its outcome, of OUTCOMES, and its processes."""
  expected = bench.undisturbed(fault.members)
  with room(bench, fault) as workdir:
    if fault.kind == "two processes":
      pair = [bench.start(workdir, fault.members, None, False) for _ in range(2)]
      ended = [bench.wait(*one) for one in pair]
    else:
      ended = [bench.process(workdir, fault.members, fault, fault.fresh)]
    mend(bench, fault, workdir, ended)
    refused = False
    for _ in range(3):
      if ended[-1].status == 0 and all(
          (workdir / name / "DONE").exists() for name in names(fault.members)):
        break
      again = bench.process(workdir, fault.members, None, False)
      ended.append(again)
      if again.status == 1:
        refused = True
        break
    bad = next((one.fault() for one in ended if one.fault()), "")
    if bad:
      return bad, ended
    if refused:
      return "one line" if fault.kind == "damage" else "lost", ended
    try:
      return "bit-equal" if bench.result(workdir, fault.members) == expected else "wrong", ended
    except (OSError, ValueError):
      return "lost", ended


def mend(bench: Bench, fault: Fault, workdir: Path, ended: list[Ended]) -> None:
  """Does what happens between the fault and the new start: room is made, or something damaged."""
  (bench.small / "filler").unlink(missing_ok=True)
  away = workdir.with_name("away")
  if away.exists():
    shutil.rmtree(workdir, ignore_errors=True)
    away.rename(workdir)
  if fault.kind == "read-only" and bench.is_mounted and workdir.exists():
    subprocess.run(["mount", "--bind", workdir, workdir], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", workdir], check=True)
    try:
      ended.append(bench.process(workdir, fault.members, None, False))
    finally:
      subprocess.run(["umount", "-l", workdir], check=True)
  if fault.kind == "damage":
    damage(workdir, random.Random(fault.number))


def damage(workdir: Path, rng: random.Random) -> None:
  """Damages a file of a run directory: a bit, a half, all of it, or another's content."""
  files = sorted(path for path in workdir.rglob("*") if path.is_file() and path.name != "DONE")
  for done in workdir.rglob("DONE"):
    done.unlink()
  if not files:
    return
  path = rng.choice(files)
  raw, way = bytearray(path.read_bytes()), rng.choice(("bit", "half", "gone", "empty", "other"))
  if way == "gone":
    path.unlink()
    return
  if way == "bit" and raw:
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
  path.write_bytes({"bit": bytes(raw), "half": bytes(raw[:len(raw) // 2]), "empty": b"",
                    "other": rng.choice(files).read_bytes()}[way])


def run(seed: int, count: int, kinds: tuple[str, ...] = KINDS, workers: int = 1,
        say: Callable[[str], None] = print, show: bool = False, seconds: float = 1e9
        ) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
  """Runs trials of seeds `seed` to `seed` + `count` - 1; returns (kind, outcome) -> how many, and a
  line for each that went wrong."""
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  wrong: list[str] = []
  folder = Path(tempfile.mkdtemp(prefix="of_jax_faults_"))
  bench, deadline = Bench(folder), time.monotonic() + seconds
  # What is forked has it in memory, and reads where compiled programs are when it is imported.
  import of_jax.commands.train  # noqa: F401
  import of_jax.sweep.trainer  # noqa: F401
  children: list[int] = []
  last = seed + count
  try:
    for worker in range(1, workers):
      pid = os.fork()
      if pid == 0:
        children, seed = [], seed + worker
        bench.small = folder / f"small_{worker}"
        bench.small.mkdir()
        bench.is_mounted = bench.is_mounted and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(bench.small)],
            capture_output=True).returncode == 0
        break
      children.append(pid)
    is_first = len(children) == workers - 1
    for own in range(seed, last, workers):
      if time.monotonic() > deadline:
        break
      fault = Fault.draw(own, kinds)
      outcome, ended = trial(bench, fault)
      counts[fault.kind, outcome] += 1
      if show or outcome in OUTCOMES[2:]:
        last = [(one.status, one.lines[-1:]) for one in ended]
        wrong.append(f"seed {own}: {outcome}: {fault}: {last}")
        say(wrong[-1])
        if outcome in ("traceback", "hang"):
          for one in ended:
            say("\n".join(one.lines))
    (folder / f"counts_{seed}.json").write_text(json.dumps(
        [[*key, count] for key, count in counts.items()]))
    if not is_first:
      bench.close()
      os._exit(0)
    for pid in children:
      os.waitpid(pid, 0)
    counts.clear()
    for path in folder.glob("counts_*.json"):
      for kind, outcome, number in json.loads(path.read_text()):
        counts[kind, outcome] += number
  finally:
    bench.close()
    shutil.rmtree(folder, ignore_errors=True)
  return counts, wrong


def table(counts: collections.Counter[tuple[str, str]]) -> str:
  """Makes a table in Markdown of how trials ended, a row a kind."""
  lines = ["| fault | trials | " + " | ".join(OUTCOMES) + " |",
           "|" + " --- |" * (len(OUTCOMES) + 2)]
  for kind in (*KINDS, "all"):
    row = [sum(number for (own, ended), number in counts.items()
               if kind in (own, "all") and ended == outcome) for outcome in OUTCOMES]
    if sum(row):
      lines.append(f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
  return "\n".join(lines)


def main() -> None:
  """Reads the command line and runs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--count", type=int, default=40)
  parser.add_argument("--kinds", default=",".join(KINDS))
  parser.add_argument("--workers", type=int, default=1)
  parser.add_argument("--seconds", type=float, default=1e9, help="begin no trial after these")
  parser.add_argument("--show", action="store_true", help="a line for every trial")
  parser.add_argument("--write", action="store_true", help="put the table into the page")
  given = parser.parse_args()
  section = Section("run", sys.argv[1:])
  counts, _ = run(given.seed, given.count, tuple(given.kinds.split(",")), given.workers,
                  lambda line: print(line, flush=True), given.show, given.seconds)
  print(table(counts))
  if given.write:
    section.write(table(counts))
  sys.exit(any(outcome in OUTCOMES[2:] for _, outcome in counts))


if __name__ == "__main__":
  main()
