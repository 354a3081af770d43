"""Run directories of older code, stopped at step 4 of 8: they open, are measured and resume.

tests/golden/run_75cbc07 is of commit 75cbc07, run_schema2 of the first code that numbers schemas;
tests/golden/run_schema.py makes that of a new schema. Each has its tokens; finished.jsonl is the
metrics.jsonl of the same run uninterrupted, and measure.json what experiments.measure gave of step
4, both by the same code. The numbers there never change: a run of today's code that differs is
another run.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.analysis.replay import restore
from of_jax.analysis.runs import load_run, read_config
from of_jax.config import MeshConfig
from of_jax.storage import run_directory
from of_jax.storage.run_directory import read_lines
from of_jax.train.resume import newest_whole
from of_jax.train.sharding import make_mesh
from of_jax.train.trainer import make_trainer

ROOT = Path(__file__).parents[2]
GOLDENS = [ROOT / "tests" / "golden" / name for name in ("run_75cbc07", "run_schema2")]
# One device, as the run had: the eight of the tests cannot share its batches of four.
RESUME = """
from pathlib import Path
from of_jax.analysis.runs import read_config
from of_jax.train import train
train(read_config(Path("run")), "run")
"""


@pytest.fixture(params=GOLDENS, ids=lambda golden: golden.name)
def golden_run(request: pytest.FixtureRequest) -> Path:
  """The folder of a run and its tokens."""
  return Path(request.param)


@pytest.fixture
def run(golden_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """A copy of the run; the working directory is the folder of its tokens, which it names so."""
  shutil.copytree(golden_run, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  return tmp_path / "run"


def assert_close(found: Any, golden: Any, where: str) -> None:
  """Equal keys and shapes; numbers to 1e-5 of their size, and of one."""
  if isinstance(golden, Mapping):
    assert found.keys() == golden.keys(), where
    for key in golden:
      assert_close(found[key], golden[key], f"{where}/{key}")
  elif isinstance(golden, str):
    assert found == golden, where
  else:
    np.testing.assert_allclose(np.array(found, np.float64), np.array(golden, np.float64),
                               rtol=1e-5, atol=1e-5, err_msg=where)


def test_it_opens(run: Path, golden_run: Path) -> None:
  opened = load_run(run)
  assert (opened.config.model.width, opened.config.train.steps) == (16, 8)
  assert opened.train.steps.tolist() == [1, 2, 3, 4] and not opened.finished
  np.testing.assert_allclose(opened.train.loss, [4.1604233, 4.141465, 4.133782, 4.102606])
  restored = restore(run)
  golden = run_directory.read_json(golden_run / "measure.json")["provenance"]
  assert restored.step == 4 and restored.is_verified and restored.digest == golden["digest"]


@pytest.mark.parametrize("sites, metrics", (
    (("resid_pre", "final"), ("kurtosis", "mmr", "rms")),
    pytest.param((), (), marks=pytest.mark.slow, id="everything")))
def test_its_checkpoint_measures_as_then(run: Path, golden_run: Path, sites: tuple[str, ...],
                                         metrics: tuple[str, ...]) -> None:
  restored = restore(run, 4)
  found = run_directory.plain(restored.measure(restored.batches(), sites, metrics))
  golden = run_directory.read_json(golden_run / "measure.json")
  for key in ("loss", "perplexity", "num_tokens"):
    assert_close(found[key], golden[key], key)
  wanted = {site: {name: value for name, value in values.items()
                   if not metrics or name.removesuffix("_no_first") in metrics}
            for site, values in golden["telemetry"].items() if not sites or site in sites}
  assert len(wanted) == (len(sites) or 11)
  assert_close(found["telemetry"], wanted, "telemetry")


def test_its_whole_state_loads(run: Path, golden_run: Path) -> None:
  """Every path of parameters and of the optimiser's state is still there, under its name; where
  digests of older code leave something unchecked, a line says so."""
  config = dataclasses.replace(read_config(run), mesh=MeshConfig(data=1))
  mesh = make_mesh(config)
  lines: list[str] = []
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    resumed = newest_whole(run, config, trainer, lines.append, strict=True)
  assert resumed is not None and resumed.step == 4 and not resumed.diverged
  state, is_old = resumed.state, golden_run.name == "run_75cbc07"
  assert resumed.is_checked != is_old and lines == [
      f"{run}: checkpoint 4 is of an older version, without digests of all that it holds; damage "
      "in it would not be seen"][:is_old]
  assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, shapes)
  # Steps done, which the optimiser counts too; its moments are not those of a fresh run.
  counts = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == ()]
  assert len(counts) > 1 and all(int(count) == 4 for count in counts)
  moments = [leaf for leaf in jax.tree.leaves(state["opt_state"]) if leaf.ndim]
  assert all(float(jnp.abs(leaf).max()) > 0 for leaf in moments)


@pytest.mark.slow
def test_it_resumes_to_the_end_of_the_uninterrupted_run(run: Path, golden_run: Path) -> None:
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
  done = subprocess.run([sys.executable, "-c", RESUME], cwd=run.parent, env=env,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert (run / run_directory.DONE).exists()
  written = (run / run_directory.METRICS).read_text().splitlines()
  began = (golden_run / "run" / run_directory.METRICS).read_text().splitlines()
  assert written[:len(began)] == began
  golden = list(read_lines(golden_run / "finished.jsonl"))
  assert len(written) == len(golden) == 10
  for line, expected in zip(written[len(began):], golden[len(began):], strict=True):
    assert_close(json.loads(line), expected, f"step {expected['step']}, {expected['split']}")
