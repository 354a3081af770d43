"""One run from start to end: what it leaves, and that resuming gives the same bits."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from of_jax import config as config_lib
from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.storage import checkpoint, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import train

pytestmark = pytest.mark.xdist_group("loop")

MakeConfig = Callable[..., Config]
ROOT = Path(__file__).parents[2]


def quiet(line: str) -> None:
  del line


def parameters(workdir: Path, step: int) -> dict[str, np.ndarray]:
  """Parameters and moments of a checkpoint, on the host, by path."""
  with Checkpoints(workdir) as checkpoints:
    leaves = jax.tree_util.tree_leaves_with_path(checkpoints.load_host(step))
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def same_bits(a: Path, b: Path, step: int) -> None:
  assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
  ours, theirs = parameters(a, step), parameters(b, step)
  assert ours.keys() == theirs.keys() and len(ours) > 20
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_leaves_a_run_directory(make_config: MakeConfig, tmp_path: Path) -> None:
  config = make_config(train__steps=10, train__eval_every=4, train__log_every=3,
                       telemetry__every=6, train__tensorboard=True)
  lines: list[str] = []
  train(config, tmp_path / "run", lines.append)
  run = tmp_path / "run"
  # A patch is there while the clone has changes that are not committed.
  assert {p.name for p in run.iterdir() if not p.name.startswith("events.")} - {"source.diff"} == {
      "config.json", "env.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "DONE"}
  assert any(p.name.startswith("events.out.tfevents") for p in run.iterdir())
  assert config_lib.from_dict(run_directory.read_json(run / "config.json")) == config

  records = list(run_directory.read_lines(run / "metrics.jsonl"))
  trained = [r for r in records if r["split"] == "train"]
  assert [r["step"] for r in trained] == [1, 3, 6, 9, 10]
  assert ["telemetry" in r for r in trained] == [True, False, True, False, True]
  assert [r["step"] for r in records if r["split"] == "eval"] == [4, 8, 10]
  assert trained[-1]["loss"] < trained[0]["loss"]
  for record in records:
    for site, layers in (("resid_pre", 3), ("final", 1)):
      for value in record.get("telemetry", {}).get(site, {}).values():
        assert len(value) == layers
  assert set(trained[0]["telemetry"]["final"]) == {
      name + suffix for suffix in ("", "_no_first") for name in (
          "kurtosis", "kurtosis_centred", "mmr", "rms", "max_abs", "input_correlation")}
  assert [r["step"] for r in run_directory.read_lines(run / "timing.jsonl")] == [1, 3, 6, 9, 10]
  # Saved at 0, the powers of two, the multiples of three and the last; announced with its size.
  saved = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
  assert saved == [0, 1, 2, 3, 4, 6, 8, 9, 10]
  on_disk = sum(p.stat().st_size for p in (run / "checkpoints" / "10").rglob("*"))
  announced = float(lines[0].split("checkpoints of ")[1].split(" MB")[0]) * 1e6
  assert "9 checkpoints" in lines[0] and 0.5 * announced < on_disk < 2 * announced + 1e5

  environment = run_directory.read_json(run / "env.json")
  size = sum(a.size for name, a in parameters(run, 10).items() if "['params']" in name)
  assert environment["parameters"] == size
  assert environment["parameters_without_embeddings"] == size - 64 * 32 * 2 - 16 * 32
  matrices = 3 * (4 * 32 * 32 + 8 * 32 * 32) + 64 * 32
  assert environment["flops_per_token"] == 6 * matrices + 12 * 3 * 32 * 16
  assert environment["versions"]["jax"] and len(environment["corpus_sha256"]) == 64

  before = (run / "metrics.jsonl").stat().st_mtime_ns
  train(config, run, lines.append)
  assert "nothing to do" in lines[-1]
  assert (run / "metrics.jsonl").stat().st_mtime_ns == before


def test_refuses_another_config_and_loses_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
  train(make_config(train__steps=2), tmp_path / "run", quiet)
  before = (tmp_path / "run" / "config.json").read_bytes()
  with pytest.raises(UserError, match=r"another config \(optim.eps 1e-08 -> 0.0001\)"):
    train(make_config(train__steps=2, optim__eps=1e-4), tmp_path / "run", quiet)
  assert (tmp_path / "run" / "config.json").read_bytes() == before
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").touch()
  with pytest.raises(UserError, match="holds files but no run"):
    train(make_config(), tmp_path / "mine", quiet)


def test_refuses_other_data(make_config: MakeConfig, tmp_path: Path) -> None:
  path = tmp_path / "tokens.npy"
  np.save(path, np.arange(8000, dtype=np.uint16) % 64)
  config = make_config(data__corpus=f"tokens:{path}", train__steps=4, telemetry__level="off")
  train(config, tmp_path / "run", quiet)
  (tmp_path / "run" / "DONE").unlink()
  np.save(path, np.arange(8000, dtype=np.uint16)[::-1] % 64)
  with pytest.raises(UserError, match="cannot be resumed on other data"):
    train(config, tmp_path / "run", quiet)


def test_one_process_at_a_time(make_config: MakeConfig, tmp_path: Path) -> None:
  (tmp_path / "run").mkdir()
  with run_directory.locked(tmp_path / "run"):
    with pytest.raises(UserError, match="another process"):
      train(make_config(), tmp_path / "run", quiet)


def test_init_from_starts_at_the_parameters_of_a_run(make_config: MakeConfig,
                                                     tmp_path: Path) -> None:
  train(make_config(train__steps=4, telemetry__level="off"), tmp_path / "first", quiet)
  train(make_config(train__steps=1, train__init_from=f"{tmp_path / 'first'}@2", train__seed=5,
                    telemetry__level="off"), tmp_path / "second", quiet)
  before, after = parameters(tmp_path / "first", 2), parameters(tmp_path / "second", 0)
  for name in before:
    if "['params']" in name:
      np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    else:
      assert not np.any(after[name]), f"{name}: the optimiser starts anew"
  for source, message in ((f"{tmp_path / 'first'}@5", "no checkpoint at step 5; there are 0, 1"),
                          (f"{tmp_path / 'first'}@x", "not a number"),
                          (str(tmp_path), "not a run directory")):
    with pytest.raises(UserError, match=message):
      train(make_config(train__init_from=source), tmp_path / "third", quiet)
  with pytest.raises(UserError, match=r"parameter stacks/0/.* is \(3, .* there and \(2, .* here"):
    train(make_config(train__init_from=str(tmp_path / "first"), model__depth=2),
          tmp_path / "third", quiet)
  assert not (tmp_path / "third").exists()


def test_kept_steps() -> None:
  train_config = config_lib.TrainConfig(steps=100, checkpoint_every=40, checkpoint_log_base=4)
  assert checkpoint.kept_steps(train_config) == [0, 1, 4, 16, 40, 64, 80, 100]


@pytest.mark.slow
def test_resumes_on_another_mesh_to_rounding(make_config: MakeConfig, tmp_path: Path) -> None:
  """The state is restored bit for bit onto (2, 2, 2); the losses then agree to rounding."""
  fields: dict[str, Any] = {"train__steps": 6, "optim__learning_rate": 1e-3}
  train(make_config(**fields), tmp_path / "run", quiet)
  expected = list(run_directory.read_lines(tmp_path / "run" / "metrics.jsonl"))
  (tmp_path / "run" / "DONE").unlink()
  for step in (4, 6):
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
  config = make_config(**fields, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  run_directory.write_json(tmp_path / "run" / "config.json", config_lib.to_dict(config))
  train(config, tmp_path / "run", quiet)
  resumed = list(run_directory.read_lines(tmp_path / "run" / "metrics.jsonl"))
  np.testing.assert_allclose([r["loss"] for r in resumed], [r["loss"] for r in expected], rtol=1e-5)
  assert run_directory.read_json(tmp_path / "run" / "env.json")["resumed"][0]["after_step"] == 3


def command(token_file: Path, workdir: Path, *fields: str) -> list[str]:
  settings = ("model.width=32", "model.depth=2", "model.block=op", "model.dropout=0.1",
              "train.steps=60", "train.batch_size=8", "train.sequence_length=16",
              "train.eval_every=20", "train.checkpoint_every=10", "data.vocab_size=64",
              f"data.corpus=tokens:{token_file}", "data.eval_sequences=12", *fields)
  return [sys.executable, "-m", "experiments.train", "--config=experiments/configs/smoke.py",
          f"--workdir={workdir}", *(f"--config.{field}" for field in settings)]


def run_command(token_file: Path, workdir: Path, *fields: str, flags: tuple[str, ...] = ()
                ) -> subprocess.Popen[bytes]:
  """As a user runs it: one device, compiled with every optimisation (see conftest)."""
  environment = {name: value for name, value in os.environ.items()
                 if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
  # Processes that run the same program share its compilation, most of a short run's time.
  cache = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
           "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
  folder = f"--compilation_cache={token_file.parent / 'compiled'}"
  return subprocess.Popen([*command(token_file, workdir, *fields), folder, *flags], cwd=ROOT,
                          env={**environment, **cache}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def uninterrupted(token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  workdir = tmp_path_factory.mktemp("whole") / "run"
  assert run_command(token_file, workdir).wait() == 0
  return workdir


def test_killed_anywhere_ends_in_the_same_bits(token_file: Path, uninterrupted: Path,
                                               tmp_path: Path) -> None:
  """kill -9 before the first step, at random steps, and in the middle of writing."""
  workdir = tmp_path / "run"
  rng = random.Random(0)
  kill_after = [0, rng.randrange(1, 30), rng.randrange(30, 60)]
  for lines in kill_after:
    process = run_command(token_file, workdir)
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
      if workdir.exists() and lines == 0:
        break
      # Flushes come late, so the file's length in bytes is a random moment of its own.
      if metrics.exists() and metrics.read_bytes().count(b"\n") >= lines > 0:
        break
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "DONE").exists(), "killed too late to test anything"
  if (workdir / "metrics.jsonl").exists():
    with (workdir / "metrics.jsonl").open("a") as file:
      file.write('{"step": 59, "split": "tr')
  compiled = {path.name for path in (token_file.parent / "compiled").glob("*-cache")}
  assert run_command(token_file, workdir, flags=("--profile_steps=50:52",)).wait() == 0
  same_bits(workdir, uninterrupted, 60)
  # What the first run compiled is kept; three steps of this one are traced.
  assert compiled and compiled == {
      path.name for path in (token_file.parent / "compiled").glob("*-cache")}
  traces = list((workdir / "profile").rglob("*.xplane.pb"))
  assert len(traces) == 1 and traces[0].stat().st_size > 1000
  resumed = run_directory.read_json(workdir / "env.json")["resumed"]
  assert [r["after_step"] for r in resumed] and resumed[-1]["after_step"] >= 20
  steps = [record["step"] for record in run_directory.read_lines(workdir / "timing.jsonl")]
  assert steps == list(range(1, 61))


@pytest.mark.parametrize("fields", (
    ["telemetry.level=off"], pytest.param(["telemetry.every=3"], marks=pytest.mark.slow),
    pytest.param(["telemetry.level=full", "telemetry.cadences=attention=20,moment_updates=15"],
                 marks=pytest.mark.slow)), ids=("off", "third", "full"))
def test_telemetry_changes_no_bit(fields: list[str], token_file: Path, uninterrupted: Path,
                                  tmp_path: Path) -> None:
  """Without telemetry, with it every third step, and with all there is: the same parameters,
  moments and losses."""
  workdir = tmp_path / "run"
  assert run_command(token_file, workdir, *fields).wait() == 0
  ours, theirs = parameters(workdir, 60), parameters(uninterrupted, 60)
  for key, value in ours.items():
    np.testing.assert_array_equal(value, theirs[key], err_msg=key)
  losses = [[r["loss"] for r in run_directory.read_lines(run / "metrics.jsonl")]
            for run in (workdir, uninterrupted)]
  assert losses[0] == losses[1]
