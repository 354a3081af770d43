"""Warm workers: each case runs in a fork of a process that has everything imported.

So a case takes milliseconds where nothing is compiled, has memory and time of its own, and what it
breaks, breaks with it. Leaves: how each ended, in one word.
"""

import dataclasses
import gc
import math
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from of_jax.errors import UNFORESEEN, UserError

GIB = 1 << 30
# In use beside that of the process that forks, and what may be mapped: threads map far more than
# they use, and libraries hang where they cannot.
MEMORY, MAPPED = 2 * GIB, 10 * GIB
# Ends that are faults.
FAULTS = ("traceback", "more than a line", "crash", "hang", "slow", "memory")
# Seconds of the processor in which what is refused is refused.
SECONDS_TO_REFUSE = 10.0
_LONGEST_LINE = 4_000
# The machine may be another's too.
_WALL = 30


@dataclasses.dataclass(frozen=True)
class Case:
  """One case.

  Attributes:
    kind: row of the table that it counts in.
    name: says how to make it again.
    run: what is tried; a return counts as `accepted`.
    seconds: of the processor, after which it hangs; or _WALL times as many on the wall.
  """

  kind: str
  name: str
  run: Callable[[], None]
  seconds: float


@dataclasses.dataclass(frozen=True)
class End:
  """End of a case: `accepted`, `refused`, or one of FAULTS, with what it wrote to stderr."""

  case: Case
  word: str
  said: str


def run(cases: Iterable[Case], workers: int, report: Callable[[End], None],
        minutes: float = math.inf) -> None:
  """Runs the cases, `workers` at a time, and reports each end; begins none after so many minutes.
  """
  last = time.monotonic() + 60 * minutes
  gc.collect()
  gc.freeze()
  running: dict[int, tuple[Case, float, Path]] = {}
  with tempfile.TemporaryDirectory(prefix="faults_") as folder:
    waiting, number = iter(cases), 0
    done = False
    while running or not done:
      while not done and len(running) < workers:
        case = next(waiting, None) if time.monotonic() < last else None
        if case is None:
          done = True
          break
        number += 1
        said = Path(folder, str(number))
        running[_fork(case, said)] = case, time.monotonic() + _WALL * case.seconds, said
      for process, (case, deadline, said) in list(running.items()):
        ended, status, used = os.wait4(process, os.WNOHANG)
        is_late = not ended and time.monotonic() > deadline
        if is_late:
          os.kill(process, signal.SIGKILL)
          os.waitpid(process, 0)
        if ended or is_late:
          del running[process]
          report(_end(case, None if is_late else status, said, used))
      time.sleep(0.002)


def _fork(case: Case, said: Path) -> int:
  sys.stdout.flush()
  sys.stderr.flush()
  process = os.fork()
  if process:
    return process
  status = 70
  try:
    file = os.open(said, os.O_WRONLY | os.O_CREAT, 0o600)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(file, 2)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAPPED,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + case.seconds),) * 2)
    try:
      case.run()
      status = 0
    except UserError as error:
      print(f"error: {error}", file=sys.stderr)
      status = 1
    except SystemExit as ended:
      status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
      traceback.print_exc()
    sys.stderr.flush()
  finally:
    os._exit(status)
  return 0


def _end(case: Case, status: int | None, said: Path, used: Any) -> End:
  text = said.read_text(errors="replace") if said.exists() else ""
  lines = [line for line in text.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith("error: ")]
  if status is None or os.WIFSIGNALED(status) and os.WTERMSIG(status) in (
      signal.SIGXCPU, signal.SIGKILL):
    word = "hang"
  elif "Traceback (most recent call last)" in text or UNFORESEEN in text:
    word = "traceback"
  elif not os.WIFEXITED(status):
    word = "crash"
  elif os.WEXITSTATUS(status) == 0:
    word = "accepted"
  elif os.WEXITSTATUS(status) == 1 and len(errors) == len(lines) == 1 and len(
      lines[0]) < _LONGEST_LINE:
    word = "refused" if used.ru_utime + used.ru_stime <= SECONDS_TO_REFUSE else "slow"
  else:
    word = "more than a line"
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  if word in ("accepted", "refused") and (used.ru_maxrss - own) * 1024 > MEMORY:
    word = "memory"
  return End(case, word, text[-3000:])


class Table:
  """Counts of ends by kind, and what went wrong."""

  def __init__(self, verbose: bool = False) -> None:
    self._verbose = verbose
    self.counts: dict[str, Counter[str]] = {}
    self.faults: list[End] = []
    self.words: Counter[str] = Counter()

  def add(self, end: End) -> None:
    """Counts one; says at once what is a fault."""
    self.counts.setdefault(end.case.kind, Counter())[end.word] += 1
    self.words[end.word] += 1
    if self._verbose:
      print(f"{end.word}: {end.case.name[:300]!r}: {end.said.strip()[:300]}", flush=True)
    if end.word in FAULTS:
      self.faults.append(end)
      print(f"{end.word}: {end.case.kind}: {end.case.name[:300]}\n    "
            + "\n    ".join(end.said.strip().splitlines()[-6:]), flush=True)

  def text(self) -> str:
    """Writes the table in Markdown."""
    words = ("accepted", "refused", *FAULTS)
    rows = [("case", *words)] + [("---",) * (1 + len(words))]
    rows += [(kind, *(str(counts[word]) for word in words))
             for kind, counts in sorted(self.counts.items())]
    rows.append(("all", *(str(self.words[word]) for word in words)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
