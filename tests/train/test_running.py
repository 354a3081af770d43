"""Running statistics: renewed by the step, seen by no optimiser, kept by checkpoints."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.models.functional import named_leaves
from of_jax.storage import run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import train
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.trainer import make_trainer

MakeConfig = Callable[..., Config]
FIELDS: dict[str, Any] = {"model__norm": "power", "model__power_warmup_steps": 0,
                          "model__depth": 2, "optim__learning_rate": 1e-3}


def one_step(config: Config) -> tuple[dict[str, np.ndarray], Any, float, Any]:
  """Parameters after a step, the optimiser's state, the gradient norm, and the batch."""
  tokens = np.random.default_rng(0).integers(0, 64, (8, 17)).astype(np.int32)
  batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:],
           "weights": np.ones((8, 16), np.float32)}
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    start = trainer.init(jax.random.key(0))
    embedding = jax.device_get(start["params"]["embedding"])
    state, metrics = trainer.step(start, place_batch(mesh, batch), jax.random.key(1))
    params = {name: np.asarray(leaf) for name, leaf in named_leaves(state["params"]).items()}
  x = embedding["token"][tokens[:, :-1]].astype(np.float64) + embedding["position"]
  return params, state["opt_state"], float(metrics["grad_norm"]), config.model.embedding_scale * x


def test_a_step_sets_them_and_nothing_else_touches_them(make_config: MakeConfig) -> None:
  """Whatever the clipping and the decay; micro-batches on two devices average to the same."""
  params, opt_state, grad_norm, x = one_step(make_config(
      **FIELDS, optim__clip_norm=1e-4, optim__weight_decay=100))
  parts, _, parts_norm, _ = one_step(make_config(
      **FIELDS, train__grad_accumulation=4, mesh__data=2))

  # The first norm reads the embedding; its running square starts at 1 and decays by 0.9.
  x /= np.sqrt(np.mean(x ** 2, -1, keepdims=True) + 1e-6)
  expected = 0.9 + 0.1 * np.mean(x ** 2, (0, 1))
  np.testing.assert_allclose(params["stacks/0/attention_norm/running_square"][0], expected,
                             rtol=1e-5)
  running = {name for name in params if "running" in name}
  assert len(running) == 2 * 3
  for name in running:
    if "steps" in name:
      np.testing.assert_array_equal(parts[name], [1, 1], err_msg=name)
    if "square" in name:
      np.testing.assert_allclose(parts[name], params[name], rtol=1e-5, err_msg=name)
    assert np.all(params[name] != (1 if "square" in name else 0)), name
  # The last norm's gradient comes through no other norm, whose backward pass differs.
  name = "stacks/0/mlp_norm/running_gradient"
  np.testing.assert_allclose(parts[name][1], params[name][1], rtol=1e-3,
                             atol=1e-3 * np.abs(params[name][1]).max())

  moments = [jax.tree_util.keystr(path) for path, _ in
             jax.tree_util.tree_leaves_with_path(opt_state)]
  assert moments and not [path for path in moments if "running" in path]
  # Were the new values counted, the running squares alone would make it sqrt(4 x 32) = 11.
  assert 0 < grad_norm < 5 and abs(parts_norm - grad_norm) < 0.1 * grad_norm


def test_they_are_resumed_with_the_rest(make_config: MakeConfig, tmp_path: Path) -> None:
  config = make_config(**{**FIELDS, "model__power_warmup_steps": 3}, train__steps=4,
                       train__checkpoint_every=2, telemetry__level="off")
  train(config, tmp_path / "whole", lambda line: None)
  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  (tmp_path / "cut" / "DONE").unlink()
  shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
  train(config, tmp_path / "cut", lambda line: None)
  saved = {}
  for run in ("whole", "cut"):
    with Checkpoints(tmp_path / run) as checkpoints:
      saved[run] = named_leaves(checkpoints.load_host(4)["params"])
  assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (
      tmp_path / "cut" / "metrics.jsonl").read_bytes()
  for name, leaf in saved["whole"].items():
    np.testing.assert_array_equal(leaf, saved["cut"][name], err_msg=name)
  np.testing.assert_array_equal(saved["whole"]["stacks/0/mlp_norm/running_steps"], [4, 4])
  counted = run_directory.read_json(tmp_path / "whole" / "env.json")["parameters"]
  assert counted == sum(leaf.size for name, leaf in saved["whole"].items() if "running" not in name)


# Every sort of running state at once.
TOGETHER: dict[str, Any] = {
    "model__norm": "unified", "model__unified_warmup_steps": 2, "model__unified_window": 2,
    "model__unified_filter": True, "model__qk_norm": "batch", "model__mlp": "evonorm_b0",
    "model__depth": 2, "optim__learning_rate": 1e-3}


def test_other_running_state_is_one_devices_on_a_mesh(make_config: MakeConfig) -> None:
  params, *_ = one_step(make_config(**TOGETHER))
  meshed, *_ = one_step(make_config(**TOGETHER, mesh__data=2, mesh__fsdp=2, mesh__tensor=2))
  running = {name for name in params if "running" in name}
  assert {name.rpartition("/")[2] for name in running} == {
      "running_square", "running_squares", "running_gradient", "running_gradients",
      "running_steps", "running_mean", "running_variance"}
  for name in running:
    scale = np.abs(params[name]).max()
    np.testing.assert_allclose(meshed[name], params[name], rtol=1e-4, atol=1e-4 * scale,
                               err_msg=name)


@pytest.mark.slow
def test_other_running_state_is_resumed_bit_for_bit(make_config: MakeConfig, tmp_path: Path
                                                    ) -> None:
  """The step count, both windows and the averages; evaluation changes none of them."""
  config = make_config(**TOGETHER, train__steps=6, train__checkpoint_every=3,
                       train__eval_every=2, telemetry__level="off")
  train(config, tmp_path / "whole", lambda line: None)
  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  (tmp_path / "cut" / "DONE").unlink()
  shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
  train(config, tmp_path / "cut", lambda line: None)
  saved = {}
  for run in ("whole", "cut"):
    with Checkpoints(tmp_path / run) as checkpoints:
      saved[run] = named_leaves(checkpoints.load_host(6)["params"])
  for name, leaf in saved["whole"].items():
    np.testing.assert_array_equal(leaf, saved["cut"][name], err_msg=name)
  assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (
      tmp_path / "cut" / "metrics.jsonl").read_bytes()
  np.testing.assert_array_equal(saved["whole"]["stacks/0/mlp_norm/running_steps"], [6, 6])
  assert np.all(saved["whole"]["stacks/0/mlp_norm/running_squares"] > 0)
