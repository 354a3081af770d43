"""One config on one device, on meshes of eight, and on processes of two: the same numbers.

Every arrangement is a job of its own, as a user starts it. In float64, which configs do not offer,
what a mesh changes beyond rounding would show.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.test_processes import ROOT, free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("arrangements")]

STEPS = 50
FIELDS = ("model.width=32", "model.depth=2", "model.embedding_scale=8", "train.batch_size=8",
          "train.sequence_length=16", "data.vocab_size=64", "data.eval_sequences=8",
          "optim.learning_rate=1e-3", "optim.warmup_steps=0", "optim.clip_norm=none",
          f"train.steps={STEPS}")
# Processes, devices of each, mesh.
ONE = (1, 1, (1, 1, 1))
ARRANGEMENTS = [(1, 8, (8, 1, 1)), (1, 8, (2, 2, 2)), (1, 8, (1, 4, 2)), (2, 2, (2, 2, 1)),
                (2, 2, (1, 2, 2)), (4, 2, (8, 1, 1)), (4, 2, (2, 2, 2))]

# Trains STEPS steps on the job's mesh; process 0 leaves what the test compares.
TRAIN = """
import contextlib, dataclasses, hashlib, json, sys
from pathlib import Path
import jax
kind, out, coordinator, processes, process, *fields = sys.argv[1:]
jax.config.update("jax_enable_x64", kind == "float64")
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from of_jax import config as config_lib
from of_jax.data.corpora import prepare
from of_jax.data.loader import make_batches
from of_jax.models.functional import named_leaves
from of_jax.train import distributed
from of_jax.train.sharding import local_rows, make_mesh, place_batch
from of_jax.train.trainer import make_trainer
job = distributed.Job(coordinator, int(processes), int(process)) if processes != "1" else None

def whole(tree):
  return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True)
                      if job else tree)

with distributed.joined(job):
  config = config_lib.apply_overrides(config_lib.Config(), [f.split("=", 1) for f in fields])
  model = dataclasses.replace(config.model, compute_dtype=kind)
  mesh, rows = make_mesh(config), config.train.batch_size
  batches = make_batches(prepare(config.data, lambda line: None), config.data, config.train,
                         local_rows(mesh, rows))
  losses, hashes, telemetry = [], [], None
  with jax.set_mesh(mesh):
    trainer = make_trainer(dataclasses.replace(config, model=model), mesh)
    # Drawn in float32, whatever the rest is computed in.
    state = jax.jit(lambda state: jax.tree.map(
        lambda x: x.astype(kind) if jnp.issubdtype(x.dtype, jnp.floating) else x, state),
        out_shardings=trainer.shardings)(trainer.init(jax.random.key(0)))
    per_device = {}
    for part in ("params", "opt_state"):
      for leaf in jax.tree.leaves(state[part]):
        data = leaf.addressable_shards[0].data
        per_device[part] = per_device.get(part, 0) + data.size * data.dtype.itemsize
    for step in range(config.train.steps):
      batch = place_batch(mesh, batches.train_batch(step), rows)
      hashes.append(hashlib.sha256(whole(batch)["inputs"].tobytes()).hexdigest())
      state, metrics = trainer.step_measured(state, batch, jax.random.key(1))
      losses.append(float(metrics["loss"]))
      if step == 0:
        # The first moment is (1 - b1) x the gradient.
        gradients = whole(state["opt_state"][0][0].mu)
        telemetry = jax.device_get(metrics["telemetry"])
    assert str(metrics["loss"].dtype) == kind
  if jax.process_index() == 0:
    Path(out).write_text(json.dumps({
        "losses": losses, "hashes": hashes, "bytes": per_device,
        "gradients": {name: (x.astype(np.float64) / 0.1).tolist()
                      for name, x in named_leaves(gradients).items()},
        "telemetry": jax.tree.map(lambda x: np.asarray(x, np.float64).tolist(), telemetry)}))
"""


def trained(folder: Path, token_file: Path, kind: str, processes: int, devices: int,
            mesh: tuple[int, int, int]) -> dict[str, Any]:
  out, place = folder / f"{processes}_{mesh}.json", f"localhost:{free_port()}"
  fields = [*FIELDS, f"data.corpus=tokens:{token_file}",
            *(f"mesh.{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), mesh))]
  job = [subprocess.Popen(
      [sys.executable, "-c", TRAIN, kind, str(out), place, str(processes), str(process), *fields],
      cwd=ROOT, env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}, text=True,
      stderr=subprocess.PIPE) for process in range(processes)]
  try:
    errors = [process.communicate(timeout=900)[1] for process in job]
  finally:
    for process in job:
      process.kill()
  assert all(process.returncode == 0 for process in job), errors[0][-3000:]
  result: dict[str, Any] = json.loads(out.read_text())
  return result


@pytest.mark.parametrize("kind, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
def test_every_arrangement_trains_the_same(kind: str, tolerance: float, token_file: Path,
                                           tmp_path: Path) -> None:
  """Gradients of step 1 to 1e-6, 50 losses, telemetry to 1e-4, batches; and bytes a device."""
  one = trained(tmp_path, token_file, kind, *ONE)
  assert len(set(one["hashes"])) == STEPS and one["losses"][-1] < one["losses"][0] - 0.2
  largest = max(np.abs(gradient).max() for gradient in one["gradients"].values())
  for arrangement in ARRANGEMENTS:
    other = trained(tmp_path, token_file, kind, *arrangement)
    where = f"{kind} {arrangement}"
    assert other["hashes"] == one["hashes"], where
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=tolerance, err_msg=where)
    for name, gradient in one["gradients"].items():
      np.testing.assert_allclose(other["gradients"][name], gradient, rtol=0,
                                 atol=min(1e-6, 10 * tolerance) * largest,
                                 err_msg=f"{where} {name}")
    for site, metrics in one["telemetry"].items():
      for metric, value in metrics.items():
        np.testing.assert_allclose(other["telemetry"][site][metric], value, rtol=1e-4,
                                   err_msg=f"{where} {site} {metric}")
    _, _, (_, fsdp, tensor) = arrangement
    check_bytes(one["bytes"], other["bytes"], fsdp, tensor, 4 if kind == "float32" else 8)


def check_bytes(whole: dict[str, int], split: dict[str, int], fsdp: int, tensor: int,
                itemsize: int) -> None:
  """By hand, of the model above: 32 wide, 2 layers, 4 heads of 8, 64 tokens, 16 positions."""
  width, hidden, layers, tokens, positions = 32, 128, 2, 64, 16
  both_ways = layers * (4 * width * width + 2 * width * hidden) + 2 * tokens * width
  by_fsdp = positions * width
  gains = 2 * layers * width  # Of norms, never split.

  def expected(fsdp: int, tensor: int) -> int:
    return both_ways // (fsdp * tensor) + by_fsdp // fsdp + gains

  assert whole["params"] == itemsize * expected(1, 1)
  assert split["params"] == itemsize * expected(fsdp, tensor)
  # Two moments, and Optax's counters of 4 bytes.
  counters = whole["opt_state"] - 2 * whole["params"]
  assert 0 < counters <= 16
  assert split["opt_state"] == 2 * split["params"] + counters
