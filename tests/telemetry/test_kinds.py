"""A second family of every kind that a program of its own measures, against NumPy in float64."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.config import Config, declared_metrics
from of_jax.errors import UserError
from of_jax.storage import run_directory
from of_jax.train import train
from of_jax.train.kinds import BUILDERS
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.trainer import Trainer, make_trainer
from tests.planted import planted

pytestmark = pytest.mark.xdist_group("kinds")

MakeConfig = Callable[..., Config]
HEAD = '''
"""A family of a test."""

import jax.numpy as jnp

from of_jax.telemetry.family import Family

KIND = "{kind}"
SITES = ()
EVERY = {every}
METRICS = {{"{id}": ("full", "of a test", "ratio", "any", "this test")}}


class Mine(Family):
'''
CHANGE = '''
  def of_change(self, before, after):
    moved = jnp.square(after.raw_BxTxD - before.raw_BxTxD)
    return {"max_moved": jnp.max(moved), "square": jnp.sum(jnp.square(before.raw_BxTxD))}

  def finish(self, s, no_first):
    return {"largest_move": s["max_moved"] / s["square"]}
'''
ATTENTION = '''
  def of_attention(self, q_BxTxHxK, k_BxSxGxK, weigh, first_BxT, counts_BxT):
    logits, weights = weigh(q_BxTxHxK, k_BxSxGxK, 0)
    kept = jnp.where(counts_BxT[:, None, :, None], jnp.square(weights), 0)
    return {"square": jnp.sum(kept, (0, 2, 3)), "queries": jnp.sum(counts_BxT, dtype=jnp.float32)}

  def finish(self, s, no_first):
    return {"attention_square": jnp.mean(s["square"], -1) / s["queries"]}
'''
GRADIENTS = '''
  def of_gradients(self, sum_square_LxD, tokens):
    return {"sum_square": sum_square_LxD, "tokens": jnp.full(sum_square_LxD.shape[:1], tokens)}

  def finish(self, s, no_first):
    return {"ID": jnp.max(s["sum_square"], -1) / s["tokens"]}
'''


def family(kind: str, every: int, id_: str, methods: str) -> str:
  return HEAD.format(kind=kind, every=every, id=id_) + methods.replace("ID", id_)


FILES = {f"telemetry/families/{name}.py": family(*rest) for name, *rest in (
    ("moves", "change", 2, "largest_move", CHANGE),
    ("squares_of_weights", "attention", 3, "attention_square", ATTENTION),
    ("steepest", "gradients", 0, "steepest_inside", GRADIENTS),
    ("steepest_apart", "gradients", 2, "steepest_apart", GRADIENTS))}
IDS = ("largest_move", "attention_square", "steepest_inside", "steepest_apart")


@pytest.fixture(scope="module", autouse=True)
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
  with planted(tmp_path_factory.mktemp("planted"), FILES):
    yield


def small(make_config: MakeConfig, **fields: Any) -> Config:
  return make_config(**{
      "model__width": 16, "model__depth": 2, "model__heads": 2, "model__kv_heads": 2,
      "model__init_std": 0.3, "train__batch_size": 8, "train__sequence_length": 8,
      "optim__learning_rate": 0.05, "telemetry__level": "full",
      "telemetry__metrics": ",".join(IDS), **fields})


@dataclasses.dataclass
class Measured:
  """Metrics of one step and its side programs, and float64 activations before and after it."""

  inside: Any
  apart: dict[str, Any]
  before: dict[str, np.ndarray]
  after: dict[str, np.ndarray]
  slopes: dict[str, np.ndarray]


def a_batch() -> dict[str, np.ndarray]:
  tokens = np.random.default_rng(0).integers(1, 64, (8, 9)).astype(np.int32)
  return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:],
          "weights": np.ones((8, 8), np.float32)}


def activations(trainer: Trainer, params: Any, batch: Any) -> dict[str, np.ndarray]:
  run = jax.jit(lambda params: trainer.network.stream(
      params, batch["inputs"], observe=lambda site, x, first: x.astype(jnp.float32))[2])
  return {site: np.asarray(x, np.float64) for site, x in jax.device_get(run(params)).items()}


def slopes_of(trainer: Trainer, params: Any, batch: Any, like: dict[str, np.ndarray]) -> Any:
  """The loss's gradients with respect to zeros that are added to every activation."""
  def loss(zeros: Any) -> jax.Array:
    x, table, _ = trainer.network.stream(
        params, batch["inputs"], training=True,
        intervene=lambda site, x, layer: x + zeros[site][jnp.maximum(layer - 1, 0)])
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(jnp.tensordot(x, table, 1)), batch["targets"][..., None], -1)
    return -jnp.mean(picked)

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
  return {site: np.asarray(x, np.float64)
          for site, x in jax.device_get(jax.jit(jax.grad(loss))(zeros)).items()}


def measured(config: Config) -> Measured:
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    state, key = trainer.init(jax.random.key(0)), jax.random.key(1)
    batch = place_batch(mesh, a_batch())
    params = trainer.copied(state["params"])
    before = activations(trainer, params, batch)
    slopes = slopes_of(trainer, params, batch, before)
    programs = trainer.side_programs
    apart = {name: program.run(state, batch, key) for name, program in programs.items()
             if program.given == "before"}
    state, metrics = trainer.step_measured(state, batch, key)
    apart |= {name: program.run(params, state["params"], batch)
              for name, program in programs.items() if program.given == "across"}
    return Measured(jax.device_get(metrics["telemetry"]), jax.device_get(apart), before,
                    activations(trainer, state["params"], batch), slopes)


def test_a_second_family_of_each_kind(make_config: MakeConfig) -> None:
  """In micro-batches, over which squares and statistics add up."""
  found = measured(small(make_config, train__grad_accumulation=2))
  assert set(found.apart) == {"moves", "squares_of_weights", "steepest_apart"}
  close = functools.partial(np.testing.assert_allclose, rtol=2e-4)
  assert set(found.apart["moves"]) == set(found.before)
  for site, x_LxBxTxD in found.before.items():
    for layer, (x, y, slope) in enumerate(zip(
        x_LxBxTxD, found.after[site], found.slopes[site])):
      close(found.apart["moves"][site]["largest_move"][layer],
            np.square(y - x).max() / np.square(x).sum(), err_msg=site)
      steepest = np.square(slope).sum((0, 1)).max() / 64
      close(found.inside[site]["steepest_inside"][layer], steepest, err_msg=site)
      close(found.apart["steepest_apart"][site]["steepest_apart"][layer], steepest, err_msg=site)
  for layer in range(2):
    q, k = (found.before[site][layer].reshape(8, 8, 2, 8) for site in ("attn_q", "attn_k"))
    logits = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(8)
    weights = np.where(np.tril(np.ones((8, 8), bool)), np.exp(logits), 0)
    weights /= weights.sum(-1, keepdims=True)
    close(found.apart["squares_of_weights"]["attention"]["attention_square"][layer],
          np.square(weights).sum(-1).mean(), err_msg="attention")


def test_each_family_has_its_own_cadence(make_config: MakeConfig, tmp_path: Path) -> None:
  config = small(make_config, train__steps=6, train__log_every=1, train__eval_every=6,
                 train__checkpoint_every=6, train__tensorboard=False, telemetry__every=1,
                 telemetry__cadences="moves=4", data__eval_sequences=8,
                 telemetry__metrics=",".join((*IDS, "m4")))
  train(config, tmp_path / "run", lambda line: None)
  steps: dict[str, list[int]] = {id_: [] for id_ in (*IDS, "m4")}
  for record in run_directory.read_lines(tmp_path / "run" / run_directory.METRICS):
    names = {name for metrics in record["telemetry"].values() for name in metrics}
    for id_ in names & set(steps) if record["split"] == "train" else ():
      steps[id_].append(record["step"])
  assert steps == {"largest_move": [1, 4, 6], "attention_square": [1, 3, 6], "m4": [1, 6],
                   "steepest_inside": [1, 2, 3, 4, 5, 6], "steepest_apart": [1, 2, 4, 6]}


def test_every_kind_that_is_measured_apart_has_a_builder() -> None:
  assert set(BUILDERS) == set(declared_metrics.KINDS) - {"parameters"}


@pytest.mark.parametrize("kind, every, message", (
    ("changes", 2, 'KIND is "changes", not one of activations, gradients, .*change'),
    ("change", 0, "EVERY is 0, and a family of kind change is measured apart")))
def test_a_kind_that_does_not_fit_is_told_with_its_file(
    tmp_path: Path, kind: str, every: int, message: str) -> None:
  files = {"telemetry/families/wrong.py": family(kind, every, "wrong", CHANGE)}
  with planted(tmp_path, files):
    with pytest.raises(UserError, match=rf"families/wrong.py:\d+: {message}"):
      declared_metrics.families()
