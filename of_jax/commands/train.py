"""Trains one run, or resumes it.

  python -m experiments.train --config=experiments/configs/smoke.py --workdir=runs/smoke

Any field is set as in --config.optim.learning_rate=3e-3. Started again, the same command resumes
after the last checkpoint and ends in the same bits; a finished run is left as it is. SIGTERM saves
and ends with status 75, which says: start me again.

Several processes of one job are started with the same command and where they meet, each with its
own number: --coordinator=HOST:PORT --num_processes=4 --process_id=0, or with --coordinator=auto
where the cluster knows (Cloud TPU, GKE, SLURM). They share the workdir.
"""

import contextlib
import os

from absl import flags

from of_jax.commands import cli
from of_jax.config import values
from of_jax.errors import UserError

_CONFIG = flags.DEFINE_string("config", None, "config file, or FILE:ARGUMENT")
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory: made, or resumed")
_INIT_FROM = flags.DEFINE_string(
    "init_from", None, "run directory, DIR@STEP or weights trained elsewhere, to start from; the "
    "same as --config.train.init_from")
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FIRST:LAST, steps to trace into WORKDIR/profile for TensorBoard's "
    "profiler, as in 20:24")
_STRICT_RESUME = flags.DEFINE_bool(
    "strict_resume", False, "refuse to resume where a checkpoint or metrics.jsonl is damaged; "
    "default: name it, set it aside, and go on from the newest checkpoint that is whole")
flags.DEFINE_string(
    "compilation_cache", None, "folder for compiled programs, so that a run that is started again "
    "does not compile again; default JAX_COMPILATION_CACHE_DIR, and without it none")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, or auto; default JAX_COORDINATOR_ADDRESS, and "
    "without it one process")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "processes of the job; default JAX_NUM_PROCESSES", lower_bound=1,
    upper_bound=1 << 20)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "which of them this is, from 0; default JAX_PROCESS_ID", lower_bound=0,
    upper_bound=1 << 20)


def main() -> None:
  if _CONFIG.value is None:
    raise UserError("--config is missing, as in --config=experiments/configs/smoke.py")
  if _WORKDIR.value is None:
    raise UserError("--workdir is missing, as in --workdir=runs/smoke")
  extra = [("train.init_from", _INIT_FROM.value)] if _INIT_FROM.value else []
  config = cli.load_config(_CONFIG.value, extra)
  profile = _profile_steps(config.train.steps)
  place = _place()
  cache = cli.output_folder("compilation_cache")
  if cache is not None:
    # Read when jax is imported.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
  # jax comes with the trainer, so it is imported only once the command line is known to be good.
  from of_jax.train import distributed, train
  with distributed.joined(distributed.Job(*place) if place else None):
    train(config, _WORKDIR.value, profile=profile, strict_resume=_STRICT_RESUME.value)
    if distributed.is_writer():
      _close(_WORKDIR.value)


def _close(workdir: str) -> None:
  """Says what was reached. The run is over, whether or not that can be shown."""
  from of_jax.analysis import load_run
  from of_jax.report.closing import closing
  with contextlib.suppress(UserError, OSError, ValueError):
    print("\n".join(closing(load_run(workdir), workdir)), flush=True)


def _profile_steps(steps: int) -> tuple[int, int] | None:
  text = _PROFILE_STEPS.value
  if text is None:
    return None
  first, separator, last = text.partition(":")
  if not (separator and values.whole(first) and values.whole(last)
          and 1 <= int(first) <= int(last) <= steps):
    raise UserError(f"--profile_steps={text}: not FIRST:LAST with 1 <= FIRST <= LAST <= {steps}, "
                    "as in 20:24")
  return int(first), int(last)


def _place() -> tuple[str, int | None, int | None] | None:
  """Reads (coordinator, number of processes, this one's); None where there is one process."""
  coordinator = _COORDINATOR.value or os.environ.get("JAX_COORDINATOR_ADDRESS")
  count = _number(_NUM_PROCESSES.value, "num_processes", "JAX_NUM_PROCESSES")
  process = _number(_PROCESS_ID.value, "process_id", "JAX_PROCESS_ID")
  if not coordinator:
    for name, value in (("num_processes", count), ("process_id", process)):
      if value is not None and not (name == "num_processes" and value == 1):
        raise UserError(f"--{name}={value}: needs --coordinator=HOST:PORT, or auto")
    return None
  if coordinator != "auto":
    host, separator, port = coordinator.rpartition(":")
    if not (host and separator and values.whole(port) and 0 < int(port) < 1 << 16):
      raise UserError(f"--coordinator={coordinator}: not HOST:PORT with a port of 1 to 65535, and "
                      "not auto")
    for name, value in (("num_processes", count), ("process_id", process)):
      if value is None:
        raise UserError(f"--coordinator={coordinator}: needs --{name} too")
  if count is not None and process is not None and not 0 <= process < count:
    raise UserError(f"--process_id={process}: must be at least 0 and below {count}, the "
                    "--num_processes")
  return coordinator, count, process


def _number(flag: int | None, name: str, variable: str) -> int | None:
  text = os.environ.get(variable)
  if flag is not None or not text:
    return flag
  if (number := values.whole(text)) is None:
    raise UserError(f"{variable}={text}: not a whole number, as --{name} is")
  return number


if __name__ == "__main__":
  cli.run(main)
