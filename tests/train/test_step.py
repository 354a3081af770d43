"""The compiled step: telemetry changes nothing, a mesh changes nothing, micro-batches add up."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.models.functional import named_leaves
from of_jax.optim import learning_rate_schedule
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.trainer import make_trainer

# Every kind of split; the block with more kinds of parameters has more of them.
MESHES: dict[str, list[dict[str, int]]] = {
    "pre": [{"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}],
    "op": [{"mesh__data": 8}, {"mesh__data": 1, "mesh__fsdp": 4, "mesh__tensor": 2}],
}
MakeConfig = Callable[..., Config]
SETUPS: dict[str, dict[str, Any]] = {
    "pre": {},
    "op": {"model__block": "op", "model__beta_trainable": True, "model__beta_per_channel": True},
}


def batches(count: int, batch: int = 8, documents: bool = False) -> list[dict[str, np.ndarray]]:
  rng = np.random.default_rng(0)
  result = []
  for _ in range(count):
    tokens = rng.integers(0, 64, (batch, 17)).astype(np.int32)
    rows = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:],
            "weights": np.ones((batch, 16), np.float32)}
    if documents:
      rows["documents"] = np.cumsum(rows["inputs"] < 8, 1).astype(np.int32)
    result.append(rows)
  return result


def run(config: Config, count: int, measured: bool = True, documents: bool = False
        ) -> tuple[Any, list[Any]]:
  """State after `count` steps on the config's mesh, and every step's metrics."""
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    step = trainer.step_measured if measured else trainer.step
    history: list[Any] = []
    compiled = 0
    for batch in batches(count, config.train.batch_size, documents):
      state, metrics = step(state, place_batch(mesh, batch), jax.random.key(1))
      history.append(jax.device_get(metrics))
      compiled = compiled or step._cache_size()
      assert step._cache_size() == compiled, "a second executable was compiled"
  return state, history


@pytest.mark.parametrize("setup", ("pre", pytest.param("op", marks=pytest.mark.slow)))
def test_sharded_equals_single(setup: str, make_config: MakeConfig) -> None:
  """At a rate where rounding does not grow: step 1's gradients, ten losses, telemetry."""
  fields = {**SETUPS[setup], "optim__learning_rate": 1e-3, "train__steps": 10}
  state, single = run(make_config(**fields), 10)
  for mesh in MESHES[setup]:
    sharded_state, sharded = run(make_config(**fields, **mesh), 10)
    np.testing.assert_allclose([m["loss"] for m in sharded], [m["loss"] for m in single],
                               rtol=1e-5)
    np.testing.assert_allclose(sharded[0]["grad_norm"], single[0]["grad_norm"], rtol=1e-6)
    for site, metrics in single[0]["telemetry"].items():
      for metric, value in metrics.items():
        np.testing.assert_allclose(sharded[0]["telemetry"][site][metric], value, rtol=1e-4,
                                   atol=1e-6, err_msg=f"{site} {metric}")
    check_split(sharded_state, make_config(**fields, **mesh))


def test_gradients_sharded_equal_single(make_config: MakeConfig) -> None:
  """Step 1's gradients, read off the first moment: m = (1 - b1) g without clipping."""
  fields = {**SETUPS["op"], "optim__clip_norm": None, "optim__learning_rate": 1e-3}

  def gradients(**mesh: int) -> dict[str, np.ndarray]:
    state, _ = run(make_config(**fields, **mesh), 1, measured=False)
    moments = state["opt_state"][0][0].mu
    return {name: np.asarray(m) / 0.1 for name, m in named_leaves(moments).items()}

  single, sharded = gradients(), gradients(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  largest = max(np.abs(gradient).max() for gradient in single.values())
  for name, gradient in single.items():
    np.testing.assert_allclose(sharded[name], gradient, atol=1e-6 * largest, err_msg=name)


def check_split(state: Any, config: Config) -> None:
  """Matrices and their moments take the share of a device's memory that the mesh says."""
  ways = config.mesh.fsdp * config.mesh.tensor
  for part in (state["params"], state["opt_state"][1][0].mu, state["opt_state"][1][0].nu):
    for name, leaf in named_leaves(part).items():
      if name.endswith("kernel"):
        assert leaf.addressable_shards[0].data.size * ways == leaf.size, name


def test_micro_batches_add_up_to_the_batch(make_config: MakeConfig) -> None:
  fields = {**SETUPS["op"], "optim__learning_rate": 1e-3, "train__z_loss": 1e-3}
  _, whole = run(make_config(**fields), 3)
  _, parts = run(make_config(**fields, train__grad_accumulation=4, mesh__data=2), 3)
  for ours, theirs in zip(parts, whole):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 ours, theirs)


def test_documents_restart_positions(make_config: MakeConfig) -> None:
  """`_no_first` leaves out every document's first token where attention stays inside it."""
  config = make_config(model__positions="rotary")
  _, (inside,) = run(config, 1, documents=True)
  _, (across,) = run(config, 1)
  kurtosis = inside["telemetry"]["resid_pre"]["kurtosis_no_first"]
  assert np.all(kurtosis != across["telemetry"]["resid_pre"]["kurtosis_no_first"])


def test_z_loss_reaches_the_step(make_config: MakeConfig) -> None:
  plain, _ = run(make_config(), 1, measured=False)
  with_z, _ = run(make_config(train__z_loss=0.1), 1, measured=False)
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (plain, with_z))))


@pytest.mark.parametrize("schedule, expected", (
    ("constant", [0, .5, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("linear", [0, .5, 1, .8875, .775, .6625, .55, .4375, .325, .2125]),
    ("cosine", [0, .5, 1, .9657, .8682, .7222, .55, .3778, .2318, .1343]),
    ("wsd", [0, .5, 1, 1, 1, 1, 1, .775, .55, .325]),
))
def test_schedules(schedule: str, expected: list[float], make_config: MakeConfig) -> None:
  """Peak 1 after two warmup steps, down to 0.1 at step 10; wsd falls over the last 40 %."""
  own = {} if schedule == "constant" else {"optim__final_fraction": 0.1}
  if schedule == "wsd":
    own["optim__decay_fraction"] = 0.4
  optim = make_config(optim__schedule=schedule, optim__warmup_steps=2, optim__learning_rate=1,
                      train__steps=10, **own).optim
  rates = [float(learning_rate_schedule(optim, 10)(step)) for step in range(11)]
  np.testing.assert_allclose(rates[:10], expected, atol=1e-4)
  assert rates[10] == pytest.approx(1 if schedule == "constant" else 0.1)
