"""Several processes of one job, as they truly run: joined by gloo, killed, stopped, resumed."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from of_jax import config as config_lib
from of_jax import run_directory
from of_jax.train import train
from of_jax.train.checkpoint import Checkpoints

pytestmark = pytest.mark.xdist_group("processes")

ROOT = Path(__file__).parents[2]
STEPS = 12
FIELDS = ("model.width=32", "model.depth=2", "model.embedding_scale=8", "train.batch_size=8",
          "train.sequence_length=16", "train.eval_every=6", "train.checkpoint_every=100",
          "train.checkpoint_log_base=4", "train.tensorboard=false", "data.vocab_size=64",
          "data.eval_sequences=12", "optim.learning_rate=1e-3", "optim.warmup_steps=0")


def free_port() -> int:
  with socket.socket() as listening:
    listening.bind(("localhost", 0))
    return int(listening.getsockname()[1])


def start(token_file: Path, workdir: Path, processes: int, devices: int, *fields: str,
          steps: int = STEPS) -> list[subprocess.Popen[str]]:
  """One run on `processes` processes of `devices` CPU devices each."""
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
  place = [f"--coordinator=localhost:{free_port()}", f"--num_processes={processes}"]
  command = [sys.executable, "-m", "experiments.train", "--config=experiments/configs/smoke.py",
             f"--workdir={workdir}", f"--config.data.corpus=tokens:{token_file}",
             *(f"--config.{field}" for field in (*FIELDS, f"train.steps={steps}", *fields))]
  return [subprocess.Popen(
      [*command, *([*place, f"--process_id={process}"] if processes > 1 else [])], cwd=ROOT,
      env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
      for process in range(processes)]


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
  with Checkpoints(workdir) as checkpoints:
    leaves = jax.tree_util.tree_leaves_with_path(checkpoints.load_host(step))
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def wait_for_lines(workdir: Path, lines: int, started: list[subprocess.Popen[str]]) -> None:
  """Until metrics.jsonl holds as many: whatever follows happens in the middle of training."""
  metrics = workdir / run_directory.TIMING
  deadline = time.monotonic() + 600
  while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
    assert time.monotonic() < deadline and all(p.poll() is None for p in started)
    time.sleep(0.01)


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
