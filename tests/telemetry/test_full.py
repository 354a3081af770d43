"""Level `full` inside a train step: every site and metric against NumPy on raw activations."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.config.declared_metrics import SITES, names_of
from of_jax.models.written_out import masked_logits
from of_jax.telemetry import METRICS, queries, registry
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.trainer import Trainer, make_trainer
from tests.telemetry.test_metrics import check, reference

MakeConfig = Callable[..., Config]
COSTLY = ("attention", "gram", "massive", "moment_updates")


@dataclasses.dataclass
class Measured:
  """One step of one model: what was measured, and the raw values it was measured of.

  Attributes:
    metrics: of the measured step.
    apart: of each costly family, `moment_updates` included.
    before, after: site -> activations [layers, batch, time, width] before and after the step.
    slopes: site -> the loss's gradients with respect to those before.
  """

  metrics: Any
  apart: dict[str, Any]
  before: dict[str, np.ndarray]
  after: dict[str, np.ndarray]
  slopes: dict[str, np.ndarray]


def full_config(make_config: MakeConfig, own_file: Path, **fields: Any) -> Config:
  return make_config(**{
      "model__width": 16, "model__depth": 2, "model__heads": 2, "model__kv_heads": 1,
      "model__init_std": 0.3, "model__embedding_scale": 3, "model__qk_norm": "rms",
      "train__batch_size": 8, "train__sequence_length": 8, "optim__learning_rate": 0.05,
      "telemetry__level": "full",
      "telemetry__user_metrics": f"{own_file}:above_one,{own_file}:Spread", **fields})


def a_batch() -> dict[str, np.ndarray]:
  tokens = np.random.default_rng(0).integers(1, 64, (8, 9)).astype(np.int32)
  return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:],
          "weights": np.ones((8, 8), np.float32)}


def recorded(trainer: Trainer, params: Any, batch: Any) -> dict[str, np.ndarray]:
  def observe(site: str, x: jax.Array, first: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)

  run = jax.jit(lambda params: trainer.network.stream(params, batch["inputs"], observe=observe)[2])
  return jax.device_get(run(params))


def slopes_of(trainer: Trainer, params: Any, batch: Any, like: dict[str, np.ndarray]
              ) -> dict[str, np.ndarray]:
  """By adding zeros to every activation, and differentiating with respect to them."""
  def loss(zeros: Any) -> jax.Array:
    def intervene(site: str, x: jax.Array, layer: jax.Array | int) -> jax.Array:
      return x + zeros[site][jnp.maximum(layer - 1, 0)].astype(x.dtype)

    x, table, _ = trainer.network.stream(params, batch["inputs"], intervene=intervene,
                                         training=True)
    logits = jnp.tensordot(x, table.astype(x.dtype), 1).astype(jnp.float32)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)
    return -jnp.mean(picked)

  return jax.device_get(jax.jit(jax.grad(loss))(jax.tree.map(jnp.zeros_like, like)))


def measured_step(config: Config, compare: bool = True) -> Measured:
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    batch, key = place_batch(mesh, a_batch()), jax.random.key(1)
    params = trainer.copied(state["params"])
    programs = trainer.side_programs
    apart = {name: program.run(state, batch, key) for name, program in programs.items()
             if program.given == "before"}
    before = recorded(trainer, params, batch) if compare else {}
    slopes = slopes_of(trainer, params, batch, before) if compare else {}
    state, metrics = trainer.step_measured(state, batch, key)
    apart |= {name: program.run(params, state["params"], batch)
              for name, program in programs.items() if program.given == "across"}
    after = recorded(trainer, state["params"], batch) if compare else {}
    return Measured(jax.device_get(metrics), jax.device_get(apart), before, after, slopes)


def test_every_metric_at_every_site(make_config: MakeConfig, own_file: Path) -> None:
  config = full_config(make_config, own_file)
  found = measured_step(config)
  assert set(found.metrics["telemetry"]) == set(SITES) == set(found.before)
  assert set(found.apart) == set(COSTLY)
  names = {name for metric in METRICS.values() for name in names_of(metric)}
  seen = set()
  for site, x_LxBxTxD in found.before.items():
    own = found.metrics["telemetry"][site]
    for layer, x in enumerate(x_LxBxTxD):
      of_array = {name: value[layer] for name, value in own.items()
                  if name in names and not name.startswith("activation_gradient")}
      for family in ("gram", "massive"):
        of_array |= {name: value[layer]
                     for name, value in found.apart[family].get(site, {}).items()}
      check(of_array, x, set(of_array))
      check_user_metrics(own, layer, x)
      check_gradients(own, layer, found.slopes[site][layer])
      changes = found.apart["moment_updates"][site]
      check_moment_updates(changes, layer, x, found.after[site][layer])
      seen |= set(of_array) | set(changes) | set(own)
  check_attention(found)
  seen |= set(found.apart["attention"]["attention"])
  of_roles = {name for metrics in found.metrics["optimizer"].values() for name in metrics}
  # What needs a projection, or factors; and what a field of its own asks for.
  assert names - seen - of_roles == {
      "projection_factor", "projection_factor_writers", "preconditioner_condition",
      "quantised_perplexity", "quantised_loss_increase"}
  assert "dead_fraction" not in found.metrics["telemetry"]["resid_pre"]


def check_user_metrics(own: Any, layer: int, x: np.ndarray) -> None:
  np.testing.assert_allclose(own["above_one"][layer], np.mean(np.abs(x) > 1), rtol=1e-5)
  np.testing.assert_allclose(own["spread"][layer], x.max() - x.min(), rtol=1e-5)
  np.testing.assert_allclose(own["spread_no_first"][layer], x[:, 1:].max() - x[:, 1:].min(),
                             rtol=1e-5)


def check_gradients(own: Any, layer: int, slope: np.ndarray) -> None:
  # Two programs compute these gradients, and one of them with logits a chunk at a time.
  expected = reference(slope)
  for metric in ("kurtosis", "rms"):
    np.testing.assert_allclose(own[f"activation_gradient_{metric}"][layer], expected[metric],
                               rtol=1e-4, err_msg=metric)


def check_moment_updates(found: Any, layer: int, before: np.ndarray, after: np.ndarray) -> None:
  x, y = (a.reshape(-1, a.shape[-1]).astype(float) for a in (before, after))
  n, d = x.shape
  change = y - x
  # The paper's sums over pairs of tokens, by neuron; n is 64 here.
  pairs = {
      "m4_u1": 4 * np.einsum("aj,aj,bj->", change, x, x ** 2),
      "m4_u2": (2 * np.einsum("aj,bj->", change ** 2, x ** 2)
                + 4 * np.einsum("aj,bj->", change * x, change * x)),
      "m4_u3": 4 * np.einsum("aj,bj->", x * change, change ** 2),
      "m4_u4": np.einsum("aj,bj->", change ** 2, change ** 2)}
  m4 = {"before": np.mean(np.mean(x ** 2, 0) ** 2), "after": np.mean(np.mean(y ** 2, 0) ** 2)}
  assert abs(m4["after"] - m4["before"]) > 1e-3 * m4["before"], "a step that changes nothing"
  for name, value in pairs.items():
    np.testing.assert_allclose(found[name][layer], value / (n ** 2 * d), rtol=1e-4,
                               atol=1e-5 * m4["before"], err_msg=name)
  total = sum(found[name][layer] for name in pairs)
  np.testing.assert_allclose(total, m4["after"] - m4["before"], rtol=0, atol=1e-5 * m4["before"])
  np.testing.assert_allclose(found["m4"][layer], m4["before"], rtol=1e-5)
  m2 = np.mean(x ** 2)
  np.testing.assert_allclose(found["m2"][layer], m2, rtol=1e-5)
  np.testing.assert_allclose(found["m2_u"][layer], np.mean(y ** 2) - m2, rtol=0, atol=1e-5 * m2)


def attention_reference(logits_BxHxTxS: np.ndarray, first: int = 0) -> dict[str, float]:
  """Of masked logits; `first` is the key at position 0."""
  with np.errstate(divide="ignore", invalid="ignore"):
    weights = np.exp(logits_BxHxTxS - logits_BxHxTxS.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    entropy = -np.sum(np.where(weights > 0, weights * np.log(weights), 0), -1)
  mass = weights[..., first]
  return {"attention_entropy": entropy.mean(), "attention_first_mass": mass.mean(),
          "attention_sink_rate": np.mean(mass.mean(-1) > 0.3),
          "attention_logit_max": logits_BxHxTxS.max()}


def check_attention(found: Measured) -> None:
  for layer in range(2):
    q, k = (found.before[site][layer].astype(float) for site in ("attn_q", "attn_k"))
    q = q.reshape(*q.shape[:2], 2, 8)
    logits = np.einsum("bthk,bsk->bhts", q, k) / np.sqrt(8)
    logits = np.where(np.tril(np.ones((8, 8), bool)), logits, -np.inf)
    for name, value in attention_reference(logits).items():
      np.testing.assert_allclose(found.apart["attention"]["attention"][name][layer], value,
                                 rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", (
    {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "model__kv_heads": 2}, {},
    {"model__scan_layers": False, "model__remat": "full"}), ids=("sharded", "micro", "unrolled"))
def test_sharded_accumulated_and_unrolled_are_the_plain_step(
    make_config: MakeConfig, own_file: Path, mesh: dict[str, Any]) -> None:
  fields = {"model__kv_heads": mesh.get("model__kv_heads", 1)}
  plain = measured_step(full_config(make_config, own_file, **fields), compare=False)
  other = measured_step(full_config(
      make_config, own_file, train__grad_accumulation=1 if "model__remat" in mesh else 2, **mesh),
      compare=False)
  jax.tree.map_with_path(
      lambda path, a, b: np.testing.assert_allclose(
          a, b, rtol=1e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path)),
      (other.metrics, other.apart), (plain.metrics, plain.apart))


def test_a_mesh_with_micro_batches_trains_the_same_function(make_config: MakeConfig,
                                                            own_file: Path) -> None:
  """What sites leave behind is split over `tensor` at some and not at others."""
  found = []
  for fields in ({"telemetry__level": "off", "telemetry__metrics": ""},
                 {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2,
                  "train__grad_accumulation": 2}):
    config = full_config(make_config, own_file, **{
        "model__kv_heads": 2, "telemetry__user_metrics": "",
        "telemetry__metrics": "activation_gradient_kurtosis", **fields})
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
      trainer = make_trainer(config, mesh)
      state = trainer.init(jax.random.key(0))
      _, metrics = trainer.step_measured(state, place_batch(mesh, a_batch()), jax.random.key(1))
      found.append([float(metrics[name]) for name in ("loss", "grad_norm")])
  np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def stacked_by_layer(config: Config, batch: Any) -> collections.Counter[str]:
  """The arrays of one entry a layer that the compiled step's loops carry, by type and shape."""
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    state, key = trainer.init(jax.random.key(0)), jax.random.key(1)
    text = trainer.step_measured.lower(state, place_batch(mesh, batch), key).compile().as_text()
  loops = re.findall(r"= (\(.*?\)) while\(", text)
  return collections.Counter(re.findall(rf"\w+\[{config.model.depth}(?:,\d+)*\]", " ".join(loops)))


@pytest.mark.slow
def test_a_layer_leaves_sums_behind_and_no_activation(make_config: MakeConfig) -> None:
  """At most 44 bytes x layers x width of a site, and 25 numbers: docs/telemetry_cost.md."""
  batch, layers, hidden = a_batch(), 3, 64

  def left(level: str) -> collections.Counter[str]:
    return stacked_by_layer(make_config(
        model__width=16, model__depth=layers, model__heads=2, model__mlp_width=hidden,
        train__batch_size=8, train__sequence_length=8, telemetry__level=level), batch)

  off = left("off")
  assert sum(off.values()) > 20, "no loop over layers was found"
  for level, sites, widths in (("basic", 1, 16), ("full", 9, 8 * 16 + hidden)):
    found = left(level)
    assert not off - found, "what the model keeps for its backward pass changed"
    long = numbers = 0
    for shape, count in (found - off).items():
      sizes = [int(size) for size in re.findall(r"\d+", shape.partition("[")[2])]
      if sizes[-1] in (16, hidden):
        assert sizes[1:-1] in ([], [2]), f"{shape}: no sum over the batch"
        long += count * 4 * math.prod(sizes)
      else:
        assert sizes[1:] in ([], [2]), shape
        numbers += count * math.prod(sizes)
    assert 0 < long <= 44 * layers * widths
    assert numbers <= 25 * layers * sites


def test_attention_of_a_sink_in_documents_some_queries_at_a_time(
    monkeypatch: pytest.MonkeyPatch) -> None:
  """Two documents of 4 tokens, the last token padding; a key before all tokens; a cap."""
  monkeypatch.setattr(queries, "_LOGITS_AT_ONCE", 2 * 4 * 9 * 2)
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(2, 8, 4, 6)) * 3, rng.normal(size=(2, 9, 2, 6))
  document = np.arange(8) // 4
  same = np.broadcast_to(document[:, None] == document, (2, 1, 8, 8))
  counts = np.ones((2, 8), bool)
  counts[1, 7] = False
  first = np.broadcast_to(np.arange(8) % 4 == 0, (2, 8))

  def run(q: jax.Array, k: jax.Array) -> Any:
    def weigh(q: jax.Array, k: jax.Array, start: jax.Array) -> Any:
      logits = masked_logits(q, k, jnp.asarray(same), 5.0, None, start, 8)
      return logits, jax.nn.softmax(logits, -1)

    family = registry.load("attention")
    s = family.of_attention(q, k, weigh, jnp.asarray(first), jnp.asarray(counts))
    return family.finish(s, no_first=False)

  found = jax.jit(run)(q.astype(np.float32), k.astype(np.float32))
  logits = 5 * np.tanh(np.einsum("bthk,bshk->bhts", q, np.repeat(k, 2, 2)) / np.sqrt(6) / 5)
  allowed = np.tril(np.ones((8, 8), bool)) & same
  logits = np.where(np.pad(allowed, ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=True),
                    logits, -np.inf)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  with np.errstate(divide="ignore", invalid="ignore"):
    entropy = -np.sum(np.where(weights > 0, weights * np.log(weights), 0), -1)
  mass = np.where(document == 0, weights[..., 1], weights[..., 5])
  counted = np.broadcast_to(counts[:, None], mass.shape)
  means = [np.mean(mass[b, h][counts[b]]) for b in range(2) for h in range(4)]
  expected = {"attention_entropy": entropy[counted].mean(),
              "attention_first_mass": mass[counted].mean(),
              "attention_sink_rate": np.mean(np.array(means) > 0.3),
              "attention_logit_max": logits.max(-1)[counted].max()}
  assert 0 < expected["attention_sink_rate"] < 1
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
