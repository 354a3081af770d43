"""A process of a trial: trains as the binary does, with a fault at the moment that it is told."""

import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(arguments: str) -> None:
  """Trains, and ends the process; `arguments` are those of tests.faults.run.Bench.start."""
  given = json.loads(arguments)
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # As experiments/__init__.py does.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  status = 0
  try:
    from absl import flags

    from of_jax.commands import cli
    from of_jax.commands import train as binary
    if given["fault"]:
      place(given["fault"], Path(given["workdir"]), Path(given["small"]))
    if given["samples"]:
      sampled(Path(given["workdir"]), Path(given["samples"]),
              int(given["fields"]["train.checkpoint_every"]))
    flags.FLAGS.unparse_flags()
    fields = {**given["fields"], "data.corpus": f"tokens:{given['tokens']}"}
    sys.argv = ["train", "--config=experiments/configs/smoke.py", f"--workdir={given['workdir']}",
                *(f"--config.{name}={value}" for name, value in fields.items())]
    os.chdir(Path(__file__).parents[2])
    cli.run(binary.main if given["members"] == 1 else lambda: together(given))
  except SystemExit as error:
    status = error.code if isinstance(error.code, int) else int(error.code is not None)
  except BaseException:
    import traceback
    traceback.print_exc()
    status = 99
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def together(given: dict[str, Any]) -> None:
  """Trains two members together."""
  from of_jax.commands import cli
  from of_jax.sweep.trainer import train_together
  workdir = Path(given["workdir"])
  train_together({workdir / f"member_{i}": cli.load_config(
      "experiments/configs/smoke.py", [("train.seed", str(i))]) for i in range(given["members"])})


def digests(runs: list[Path], step: int, write: int) -> None:
  """Writes a hash of each run's checkpoint of `step`, and ends the process."""
  try:
    import hashlib

    import jax
    import numpy as np

    from of_jax.storage.checkpoint import Checkpoints
    for run in runs:
      hashed = hashlib.sha256()
      for leaf in jax.tree.leaves(Checkpoints(run, reading=True).load_host(step)):
        hashed.update(np.asarray(leaf).tobytes())
      os.write(write, f"{hashed.hexdigest()}\n".encode())
  finally:
    os._exit(0)


def sampled(workdir: Path, path: Path, every: int) -> None:
  """Has a line written half way between two checkpoints: the step, and what the process holds.

  Those are of memory MB, of threads, of descriptors, and of files in the run directory beside the
  checkpoints that are whole.
  """
  from of_jax.train import loop
  train, page = loop.Feed.train, os.sysconf("SC_PAGE_SIZE")

  def call(feed: loop.Feed, step: int) -> Any:
    if step % every == every // 2:
      files = [name for folder, _, names in os.walk(workdir) for name in names
               if not Path(folder).relative_to(workdir).as_posix().removeprefix(
                   "checkpoints/").partition("/")[0].isdecimal()]
      memory = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2 ** 20
      with path.open("a") as file:
        print(step, memory, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")),
              len(files), file=file)
    return train(feed, step)

  setattr(loop.Feed, "train", call)


def place(fault: dict[str, Any], workdir: Path, small: Path) -> None:
  """Has the fault happen at the given call of what its phase is known by."""
  from of_jax.storage.checkpoint import Checkpoints
  from of_jax.sweep import trainer as sweep
  from of_jax.train import loop
  from of_jax.train.writers import JsonLines
  calls = [fault["call"]]

  def hit() -> None:
    calls[0] -= 1
    if calls[0] == -1:
      happen(fault, workdir, small)

  def before(owner: Any, name: str) -> None:
    wrapped = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
      hit()
      return wrapped(*arguments, **named)

    setattr(owner, name, call)

  if fault["phase"] == "start":
    hit()
  else:
    for owner, name in {
        "compile": [(loop, "SidePrograms")],
        "step": [(loop.Feed, "train"), (sweep.StackedFeed, "train")],
        "evaluate": [(loop, "_evaluate")], "record": [(JsonLines, "write")],
        "save": [(Checkpoints, "save")]}[fault["phase"]]:
      before(owner, name)


def happen(fault: dict[str, Any], workdir: Path, small: Path) -> None:
  """Lets the fault happen: signals after its delay, out of a thread, all else at once."""
  kind = fault["kind"]
  if kind in ("kill", "term", "int", "int twice", "damage", "read-only"):
    number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "damage": signal.SIGKILL,
              "read-only": signal.SIGKILL}.get(kind, signal.SIGINT)
    later(fault["delay"], lambda: os.kill(os.getpid(), number))
    if kind == "int twice":
      later(fault["delay"] + fault["number"] % 300 / 1000, lambda: os.kill(os.getpid(), number))
  elif kind == "large":
    # What the process says fits always.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000 + fault["number"] % 60_000, hard))
  elif kind == "descriptors":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = len(os.listdir("/proc/self/fd")) + fault["number"] % 24
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  elif kind == "full" and str(small) != ".":
    # The small disk alone, never the machine's.
    free = shutil.disk_usage(small).free - fault["number"] % 200_000
    with (small / "filler").open("wb") as file:
      os.posix_fallocate(file.fileno(), 0, max(1, free))
  elif kind == "gone" and workdir.exists():
    workdir.rename(workdir.with_name("away"))
  elif kind == "clock":
    now, jump = time.time, 400 * 86400 * (1 if fault["number"] % 2 else -1)
    time.time = lambda: now() + jump


def later(seconds: float, act: Callable[[], None]) -> None:
  """Acts out of a thread."""
  timer = threading.Timer(seconds, act)
  timer.daemon = True
  timer.start()


if __name__ == "__main__":
  main(sys.argv[1])
