"""Linear attention: three forms of one function, its cost, and what is not defined of it.

The layers are compared with the authors' code in tests/fidelity/transnormer.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.cost_model import hlo
from of_jax.errors import UserError
from of_jax.models.functional import build_network
from of_jax.models.linear_attention import attend_chunks, attend_pairs, decay_rates
from of_jax.storage import run_directory
from of_jax.train import train
from tests.fidelity.norms import golden
from tests.golden import transnormer

MakeConfig = Callable[..., Config]


def drawn(steps: int) -> list[np.ndarray]:
  return list(np.random.default_rng(0).standard_normal((3, 2, steps, 4, 8)).astype(np.float32))


def recurrent(q: np.ndarray, k: np.ndarray, v: np.ndarray, rates: np.ndarray) -> np.ndarray:
  """Token by token in float64: S <- lambda S + k v^T, o = q S."""
  state, y = np.zeros((*q.shape[:1], *q.shape[2:], v.shape[-1])), np.zeros(v.shape)
  for t in range(q.shape[1]):
    state = np.exp(-rates)[:, None, None] * state + k[:, t, ..., None] * v[:, t, :, None]
    y[:, t] = np.einsum("bhj,bhjk->bhk", q[:, t], state)
  return y


@pytest.mark.parametrize("rates", (np.array(decay_rates(4)), np.zeros(4)), ids=("decay", "plain"))
def test_pairs_chunks_and_the_recurrence_are_one_function(rates: np.ndarray) -> None:
  """Chunks of 1, 4 and T, and some that do not divide T; without decay it is a running sum."""
  q, k, v = drawn(13)
  expected = recurrent(np.float64(q), np.float64(k), np.float64(v), rates)
  if not rates.any():
    sums = np.cumsum(np.einsum("bthj,bthk->bthjk", np.float64(k), v), 1)
    np.testing.assert_allclose(np.einsum("bthj,bthjk->bthk", q, sums), expected, rtol=1e-9)
  scale, rates32 = np.abs(expected).max(), jnp.asarray(rates, jnp.float32)
  for y in (attend_pairs(q, k, v, rates32),
            *(attend_chunks(q, k, v, rates32, chunk) for chunk in (1, 4, 5, 13, 20))):
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * scale)


def test_rates_are_the_released_codes() -> None:
  np.testing.assert_allclose(decay_rates(8), 2.0 ** -np.arange(1, 9))
  np.testing.assert_allclose(decay_rates(6), golden(transnormer)["slopes_6"], rtol=1e-6)


def test_long_sequences_and_fast_decay_do_not_overflow() -> None:
  q, k, v = drawn(512)
  y, pull = jax.vjp(lambda *a: attend_chunks(*a, jnp.full(4, 5.0), 64), q, k, v)
  assert all(np.all(np.isfinite(part)) for part in (y, *pull(y)))


def test_the_cost_is_linear_in_length() -> None:
  """In the compiled program: four times the tokens, four times the products; of pairs sixteen."""
  rates = jnp.asarray(decay_rates(4), jnp.float32)

  def flops(function: Callable[..., jax.Array], steps: int) -> int:
    shapes = [jax.ShapeDtypeStruct((1, steps, 4, 8), jnp.float32)] * 3
    program = hlo.read(jax.jit(function).lower(*shapes).compile().as_text())
    assert not program.uncounted
    return program.matrix_flops

  def ratio(function: Callable[..., jax.Array]) -> float:
    return flops(function, 1024) / flops(function, 256)

  assert ratio(lambda q, k, v: attend_chunks(q, k, v, rates, 64)) == 4
  assert ratio(lambda q, k, v: attend_pairs(q, k, v, rates)) == 16


def test_documents_stay_apart_in_either_form(make_config: MakeConfig) -> None:
  """A document's logits are those that it has alone."""
  network = build_network(make_config(
      model__attention="linear", model__positions="none", model__linear_positions="all",
      model__linear_chunk=4, model__depth=2))
  params = jax.jit(network.init)(jax.random.key(0))
  tokens = np.random.default_rng(0).integers(1, 64, (1, 16))
  documents = np.repeat([[0, 1]], 8, 1)
  packed, _ = network.apply(params, tokens, documents)
  alone, _ = network.apply(params, tokens[:, 8:])
  np.testing.assert_allclose(packed[:, 8:], alone, atol=1e-5)


def test_metrics_of_weights_are_null(make_config: MakeConfig, tmp_path: Path) -> None:
  """And said so in the table of metrics; those of activations are there, and it learns."""
  config = make_config(
      model__attention="linear", model__positions="none", model__norm="srms", model__mlp="sglu",
      model__depth=2, train__steps=4, train__log_every=1, telemetry__cadences="attention=2",
      telemetry__metrics="attention_entropy,attention_sink_rate,attention_logit_max,kurtosis",
      telemetry__sites="attn_q")
  train(config, tmp_path, lambda line: None)
  lines = [line for line in run_directory.read_lines(tmp_path / "metrics.jsonl")
           if line["split"] == "train"]
  found = [line["telemetry"] for line in lines if "attention" in line.get("telemetry", {})]
  assert found and set(found[-1]["attention"]) >= {"attention_entropy", "attention_sink_rate"}
  for telemetry in found:
    for name, values in telemetry["attention"].items():
      assert values == [None, None], name
    assert all(value > 0 for value in telemetry["attn_q"]["kurtosis"])
  assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("fields, message", (
    ({"qk_norm": "rms"}, "model.qk_norm=rms.*set model.qk_norm=none"),
    ({"block": "op"}, "model.qk_norm=rms"),
    ({"kv_heads": 2}, "model.kv_heads=2"),
    ({"positions": "rotary"}, "model.positions=rotary.*linear_positions"),
    ({"attention_window": 8}, "model.attention_window=8.*does nothing in linear"),
    ({"attention_gate": "head"}, "model.attention_gate=head"),
    ({"attention": "softmax", "linear_chunk": 8}, "part of model.attention=linear")), ids=str)
def test_what_softmax_attention_alone_reads_is_refused(fields: dict[str, Any], message: str,
                                                       make_config: MakeConfig) -> None:
  with pytest.raises(UserError, match=message):
    make_config(**{f"model__{name}": value
                   for name, value in {"attention": "linear", **fields}.items()})
