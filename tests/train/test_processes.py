"""Several processes of one job, as they truly run: joined by gloo, killed, stopped, resumed."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from of_jax import config as config_lib
from of_jax.commands import cli
from of_jax.config import Config
from of_jax.data.corpora import prepare
from of_jax.data.loader import make_batches
from of_jax.errors import Preempted
from of_jax.storage import run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import train
from of_jax.train.distributed import Interruption

pytestmark = pytest.mark.xdist_group("processes")

ROOT = Path(__file__).parents[2]
STEPS = 12
FIELDS = ("model.width=32", "model.depth=2", "model.embedding_scale=8", "train.batch_size=8",
          "train.sequence_length=16", "train.eval_every=6", "train.checkpoint_every=100",
          "train.checkpoint_log_base=4", "train.tensorboard=false", "data.vocab_size=64",
          "data.eval_sequences=12", "optim.learning_rate=1e-3", "optim.warmup_steps=0")
# The data axis takes the devices that are there, so that their number is no part of the config.
SHARED = ("mesh.data=-1",)


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
  yield
  for process in STARTED:
    if process.poll() is None:
      process.kill()
      process.communicate()


def free_port() -> int:
  with socket.socket() as listening:
    listening.bind(("localhost", 0))
    return int(listening.getsockname()[1])


def start(token_file: Path, workdir: Path, processes: int, devices: int, *fields: str,
          steps: int = STEPS, before: str = "", last: tuple[str, ...] = ()
          ) -> list[subprocess.Popen[str]]:
  """One run on `processes` processes of `devices` CPU devices each; `before` it, Python code.

  The last process gets the flags `last` besides.
  """
  # Jobs that run the same program share its compilation, most of a short run's time.
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices),
                 "JAX_COMPILATION_CACHE_DIR": str(token_file.parent / "compiled"),
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                 "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
  place = [f"--coordinator=localhost:{free_port()}", f"--num_processes={processes}"]
  program = (["-c", f"{before}import runpy; runpy.run_module('experiments.train', "
              "run_name='__main__', alter_sys=True)"] if before else ["-m", "experiments.train"])
  command = [sys.executable, *program, "--config=experiments/configs/smoke.py",
             f"--workdir={workdir}", f"--config.data.corpus=tokens:{token_file}",
             *(f"--config.{field}" for field in (*FIELDS, f"train.steps={steps}", *fields))]
  job = [subprocess.Popen(
      [*command, *(last if process == processes - 1 else ()),
       *([*place, f"--process_id={process}"] if processes > 1 else [])], cwd=ROOT,
      env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
      for process in range(processes)]
  STARTED.extend(job)
  return job


def finish(started: list[subprocess.Popen[str]], status: int = 0) -> list[str]:
  """What every process wrote to its standard error, once all ended with `status`."""
  try:
    ended = [process.communicate(timeout=900) for process in started]
  finally:
    for process in started:
      process.kill()
  for process, (_, err) in zip(started, ended):
    assert process.returncode == status, err[-3000:]
  return [err for _, err in ended]


def losses(workdir: Path) -> np.ndarray:
  records = list(run_directory.read_lines(workdir / "metrics.jsonl"))
  steps = [record["step"] for record in records if record["split"] == "train"]
  assert steps == list(range(1, len(steps) + 1)), "a step is missing or logged twice"
  return np.asarray([record["loss"] for record in records])


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
  """Every array of a checkpoint, by its path."""
  with Checkpoints(workdir, reading=True) as checkpoints:
    return named(checkpoints.load_host(step))


def named(tree: Any) -> dict[str, Any]:
  """Leaves by their paths, in which a field of a named tuple is as the key of a dictionary: where
  no optimiser is at hand, Orbax restores the one as the other."""
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def wait_for_lines(workdir: Path, lines: int, started: list[subprocess.Popen[str]]) -> None:
  """Until timing.jsonl holds as many, which are written at checkpoints: 1, 4 and so on."""
  metrics = workdir / run_directory.TIMING
  deadline = time.monotonic() + 600
  while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
    assert time.monotonic() < deadline and all(p.poll() is None for p in started)
    time.sleep(0.01)


# Joins, agrees, shares a batch over a mesh whose `tensor` axis spans the processes, then disagrees.
MEETING = """
import sys
import jax, numpy as np
from of_jax.errors import UserError
from of_jax.train import distributed
from of_jax.train.sharding import AXES, local_rows, place_batch
coordinator, process = sys.argv[1], int(sys.argv[2])
with distributed.joined(distributed.Job(coordinator, 2, process)):
  assert jax.process_count() == 2 and distributed.is_writer() == (process == 0)
  distributed.check_agreement({"config": {"a": 1}, "corpus": "same"})
  whole = np.arange(24, dtype=np.int32).reshape(8, 3)
  # Devices 0 and 1 are of process 0, devices 2 and 3 of process 1.
  for shape, expected in (((2, 1, 2), ([0, 1, 2, 3], [4, 5, 6, 7])[process]),
                          ((1, 1, 4), list(range(8)))):
    mesh = jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    rows = local_rows(mesh, 8)
    assert rows.tolist() == expected, rows
    placed = place_batch(mesh, {"x": whole[rows]}, 8)["x"]
    assert placed.shape == (8, 3)
    for shard in placed.addressable_shards:
      np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index])
  distributed.check_agreement({"config": {"a": 1}, "corpus": f"of {process}"})
"""


def test_two_processes_meet_agree_and_disagree() -> None:
  """One line and status 1 in both, once they find that their corpora differ."""
  place = f"localhost:{free_port()}"
  pair = [subprocess.Popen(
      [sys.executable, "-c", MEETING, place, str(process)], cwd=ROOT, text=True,
      env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"}, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE) for process in range(2)]
  STARTED.extend(pair)
  for errors in finish(pair, status=1):
    assert "error: corpus: process 1 has another than process 0" in errors, errors[-2000:]
    assert "Traceback" not in errors


def test_sigterm_is_taken_once_there_is_something_to_save() -> None:
  with pytest.raises(Preempted, match="nothing new to save"):
    with Interruption():
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(5)
  with Interruption() as interruption:
    assert not interruption.stops_at(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
    assert interruption.stops_at(2)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_told_to_stop_saves_and_resumes_in_the_same_bits(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  config = make_config(train__steps=8, train__eval_every=4, train__checkpoint_every=100,
                       model__depth=1, telemetry__level="off")
  train(config, tmp_path / "whole", lambda line: None)
  monkeypatch.setattr(Interruption, "stops_at", lambda self, step: step == 5)
  with pytest.raises(Preempted, match="saved step 5 of 8"):
    train(config, tmp_path / "cut", lambda line: None)
  assert not (tmp_path / "cut" / "DONE").exists()
  monkeypatch.undo()
  train(config, tmp_path / "cut", lambda line: None)
  environment = run_directory.read_json(tmp_path / "cut" / "env.json")
  assert [resumed["after_step"] for resumed in environment["resumed"]] == [5]
  same_bits(tmp_path / "cut", tmp_path / "whole", 8)


def test_a_job_that_was_told_to_stop_ends_with_75(monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
  def main() -> None:
    raise Preempted("told to stop; saved step 5 of 8")

  monkeypatch.setattr(sys, "argv", ["train"])
  with pytest.raises(SystemExit) as ended:
    cli.run(main)
  assert ended.value.code == 75
  assert capsys.readouterr().err == "told to stop; saved step 5 of 8; the same command resumes\n"


@pytest.mark.slow
def test_two_processes_train_what_one_does(token_file: Path, tmp_path: Path) -> None:
  """The same losses to rounding, from the same batches; one writer; both end with 0."""
  one, two = tmp_path / "one", tmp_path / "two"
  pair = start(token_file, two, 2, 1, "mesh.data=1", "mesh.fsdp=2", "model.depth=1",
               "telemetry.level=off", steps=3)
  errors = finish(pair)
  assert not any("Traceback" in error for error in errors)
  sections = run_directory.read_json(two / run_directory.CONFIG)
  train(config_lib.from_dict(sections), one, lambda line: None)
  np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
  assert (two / "DONE").exists()
  environment = json.loads((two / "env.json").read_text())
  assert environment["devices"]["processes"] == 2 and environment["mesh"]["fsdp"] == 2


@pytest.fixture(scope="module")
def whole(token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A run of two processes of four devices that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  finish(start(token_file, workdir, 2, 4, *SHARED))
  return workdir


def same_bits(ours: Path, theirs: Path, step: int = STEPS) -> None:
  assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
  left, right = saved(ours, step), saved(theirs, step)
  assert left.keys() == right.keys() and len(left) > 20
  for name, leaf in left.items():
    np.testing.assert_array_equal(leaf, right[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_is_killed(token_file: Path, tmp_path: Path, whole: Path, killed: int) -> None:
  """At a random moment: the other ends within a minute and says why; started again, the run ends
  in the same bits, with no step logged twice."""
  seed = random.randrange(2 ** 32)
  print(f"the moment is of seed {seed}")
  workdir = tmp_path / "run"
  pair = start(token_file, workdir, 2, 4, *SHARED)
  wait_for_lines(workdir, 1, pair)
  # Between step 1 and three quarters of what the steps behind it took in the other run.
  seconds = [record["seconds"] for record in run_directory.read_lines(whole / "timing.jsonl")]
  time.sleep(random.Random(seed).uniform(0, 0.75 * sum(seconds[1:])))
  pair[killed].send_signal(signal.SIGKILL)
  died = time.monotonic()
  _, errors = pair[1 - killed].communicate(timeout=300)
  assert time.monotonic() - died < 60
  assert pair[1 - killed].returncode not in (0, 1)
  assert "another process is gone" in errors or "distributed service detected" in errors
  pair[killed].communicate()
  assert not (workdir / "DONE").exists(), "killed too late to test anything"
  finish(start(token_file, workdir, 2, 4, *SHARED))
  same_bits(workdir, whole)
  timed = [record["step"] for record in run_directory.read_lines(workdir / "timing.jsonl")]
  assert timed == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_one_of_two_is_told_to_stop(token_file: Path, tmp_path: Path, whole: Path) -> None:
  """Both save after the same step and end with 75; started again, they end in the same bits."""
  workdir = tmp_path / "run"
  job = start(token_file, workdir, 2, 4, *SHARED)
  deadline = time.monotonic() + 600
  # Early, since the two take a second or two to agree on a step, and have but twelve.
  while not (workdir / "checkpoints" / "0").exists():
    assert time.monotonic() < deadline and all(process.poll() is None for process in job)
    time.sleep(0.01)
  job[1].send_signal(signal.SIGTERM)
  errors = finish(job, status=75)
  steps = {int(error.split("told to stop; saved step ")[1].split(" of ")[0]) for error in errors}
  assert len(steps) == 1 and not (workdir / "DONE").exists()
  step = steps.pop()
  assert 1 <= step < STEPS and losses(workdir).size >= step
  assert (workdir / "checkpoints" / str(step)).is_dir()
  finish(start(token_file, workdir, 2, 4, *SHARED))
  same_bits(workdir, whole)


@pytest.mark.slow
def test_damage_is_seen_by_every_process(token_file: Path, tmp_path: Path) -> None:
  """Two processes on a (2, 2, 1) mesh: a checkpoint is damaged, then the record too; both go on
  from the same older one, and end in the bits of the run that nothing happened to."""
  mesh = ("mesh.data=2", "mesh.fsdp=2")
  undisturbed, workdir = tmp_path / "whole", tmp_path / "run"
  finish(start(token_file, undisturbed, 2, 2, *mesh))
  shutil.copytree(undisturbed, workdir)
  (workdir / "DONE").unlink()
  checkpoints = workdir / "checkpoints"
  shutil.rmtree(checkpoints / "12" / "opt_state")
  for path in (checkpoints / "4" / "params").rglob("ocdbt.process_1/d/*"):
    path.write_bytes(path.read_bytes()[:10])
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write("noise")
  finish(start(token_file, workdir, 2, 2, *mesh))
  same_bits(workdir, undisturbed)
  assert {path.name for path in checkpoints.iterdir()} == {
      "0", "1", "4", "12", "4.set_aside", "12.set_aside"}
  (workdir / "DONE").unlink()
  (workdir / "metrics.jsonl").write_text("")
  finish(start(token_file, workdir, 2, 2, *mesh))
  same_bits(workdir, undisturbed)
  resumed = run_directory.read_json(workdir / "env.json")["resumed"]
  assert [one["after_step"] for one in resumed] == [1, 0]
  for step in (0, 1, 4, 12):
    shutil.rmtree(checkpoints / str(step) / "digest")
  (workdir / "DONE").unlink()
  errors = finish(start(token_file, workdir, 2, 2, *mesh), status=1)
  assert all("there is no checkpoint to go on from" in error for error in errors)


# Restores the last checkpoint on whatever devices the job has, and writes what process 0 sees, with
# hashes of the batches that follow.
RESTORE = """
import hashlib, sys
from pathlib import Path
import jax, numpy as np
from jax.experimental import multihost_utils
from of_jax import config as config_lib, run_directory
from of_jax.data.corpora import prepare
from of_jax.data.loader import make_batches
from of_jax.train import distributed
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train.sharding import local_rows, make_mesh, place_batch
from of_jax.train.trainer import make_trainer
from tests.train.test_processes import named
workdir, out, coordinator, processes, process = sys.argv[1:]
job = distributed.Job(coordinator, int(processes), int(process)) if processes != "1" else None
with distributed.joined(job):
  config = config_lib.resolve(config_lib.from_dict(
      run_directory.read_json(Path(workdir) / "config.json")))
  mesh = make_mesh(config)
  with jax.set_mesh(mesh), Checkpoints(Path(workdir)) as checkpoints:
    trainer = make_trainer(config, mesh)
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    state = checkpoints.restore(shapes, trainer.shardings, checkpoints.latest)
    state = {name: state[name] for name in ("params", "opt_state")}
    whole = multihost_utils.process_allgather(state, tiled=True) if job else state
    leaves = {name: np.asarray(leaf) for name, leaf in named(whole).items()}
  rows, hashes = config.train.batch_size, []
  batches = make_batches(prepare(config.data, print), config.data, config.train,
                         local_rows(mesh, rows))
  for step in range(checkpoints.latest, config.train.steps):
    inputs = place_batch(mesh, batches.train_batch(step), rows)["inputs"]
    inputs = multihost_utils.process_allgather(inputs, tiled=True) if job else inputs
    hashes.append(hashlib.sha256(np.asarray(inputs).tobytes()).hexdigest())
  if jax.process_index() == 0:
    np.savez(out, **leaves, hashes=hashes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes, devices", [(1, 1), (1, 2), (1, 4), (4, 1)])
def test_resumes_elsewhere(token_file: Path, tmp_path: Path, whole: Path, processes: int,
                           devices: int) -> None:
  """The restored state is the same bits, the next loss the same to 1e-6, the others to 1e-5."""
  written_on = run_directory.read_json(whole / "env.json")["devices"]
  assert (written_on["count"], written_on["processes"]) == (8, 2)
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  (workdir / "DONE").unlink()
  shutil.rmtree(workdir / "checkpoints" / str(STEPS))
  port, out = free_port(), tmp_path / "restored.npz"
  finish([subprocess.Popen(
      [sys.executable, "-c", RESTORE, str(workdir), str(out), f"localhost:{port}", str(processes),
       str(process)], cwd=ROOT, env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE) for process in range(processes)])
  expected, restored = saved(workdir, 4), dict(np.load(out))
  # The whole batch, as a process alone reads it.
  config = config_lib.from_dict(run_directory.read_json(whole / "config.json"))
  batches = make_batches(prepare(config.data, lambda line: None), config.data, config.train)
  assert restored.pop("hashes").tolist() == [
      hashlib.sha256(batches.train_batch(step)["inputs"].tobytes()).hexdigest()
      for step in range(4, STEPS)]
  assert set(restored) == set(expected) and len(expected) > 20
  for name, leaf in expected.items():
    np.testing.assert_array_equal(restored[name], leaf, err_msg=name)
  finish(start(token_file, workdir, processes, devices, *SHARED))
  ours, theirs = losses(workdir), losses(whole)
  np.testing.assert_allclose(ours[4], theirs[4], rtol=1e-6)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("processes, mesh", [(1, (8, 1, 1)), (4, (1, 4, 2)), (4, (1, 2, 4))])
def test_other_meshes_over_processes(token_file: Path, tmp_path: Path, whole: Path, processes: int,
                                     mesh: tuple[int, int, int]) -> None:
  """Eight devices however they are shared, a tensor axis across processes among them."""
  workdir = tmp_path / "run"
  fields = [f"mesh.{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), mesh)]
  finish(start(token_file, workdir, processes, 8 // processes, *fields))
  np.testing.assert_allclose(losses(workdir), losses(whole), rtol=1e-5)
