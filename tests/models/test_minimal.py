"""Minimal transformers (2410.13732): what is left out is out, and scores are symmetric."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.models.functional import build_network, named_leaves
from of_jax.quantise import scheme as schemes
from of_jax.quantise.rotation import rotate

MakeConfig = Callable[..., Config]
WIDTH, DEPTH = 16, 2
ONE_HEAD = {"model__width": WIDTH, "model__depth": DEPTH, "model__heads": 1}


@pytest.mark.parametrize("fields, squares", (
    ({}, 4 + 8), ({"mlp": "none"}, 4), ({"mlp": "none", "attention_keys": "queries"}, 3),
    ({"mlp": "none", "attention_keys": "input"}, 3),
    ({"mlp": "none", "attention_values": "input"}, 2),
    ({"mlp": "none", "attention_keys": "queries", "attention_values": "input"}, 1),
    ({"mlp": "none", "attention_keys": "input", "attention_values": "input"}, 1)), ids=str)
def test_parameters_are_the_papers_count(fields: dict[str, str], squares: int,
                                         make_config: MakeConfig) -> None:
  """D^2 a block where all is left out, against 4 D^2 and 8 D^2 of the MLP; and a gain a norm."""
  network = build_network(make_config(
      **ONE_HEAD, **{f"model__{name}": value for name, value in fields.items()}))
  counted = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(network.shapes["stacks"]))
  norms = 1 if "mlp" in fields else 2
  assert counted == DEPTH * (squares * WIDTH ** 2 + norms * WIDTH)


def test_scores_are_symmetric_and_outputs_lie_between_inputs(make_config: MakeConfig) -> None:
  """Queries are keys, rotated or not; each output coordinate lies between the inputs' extremes."""
  network = build_network(make_config(
      **ONE_HEAD, model__mlp="none", model__attention_keys="queries", model__positions="rotary",
      model__qk_norm="rms", model__attention_values="input", model__init_std=0.5))
  params = jax.jit(network.init)(jax.random.key(0))

  def observe(site: str, x: jax.Array, first: Any) -> dict[str, jax.Array]:
    return {"x": x}

  tokens = np.random.default_rng(0).integers(1, 64, (2, 16))
  sites = jax.device_get(jax.jit(lambda params: network.stream(
      params, tokens, observe=observe)[2])(params))
  q, k = sites["attn_q"]["x"], sites["attn_k"]["x"]
  scores = q @ k.swapaxes(-1, -2)
  np.testing.assert_allclose(scores, scores.swapaxes(-1, -2), atol=1e-5)
  assert np.all(np.diagonal(scores, axis1=-2, axis2=-1) > 0)
  x, y = sites["attn_in"]["x"], sites["attn_out"]["x"]
  for t in range(16):
    seen = x[:, :, :t + 1]
    assert np.all(y[:, :, t] <= seen.max(2) + 1e-5) and np.all(y[:, :, t] >= seen.min(2) - 1e-5)
  assert not [name for name in named_leaves(params) if "key" in name or "mlp" in name]


@pytest.mark.parametrize("fields, message", (
    ({"mlp": "none", "block": "parallel"}, "model.mlp=none: model.block=parallel is made around"),
    ({"mlp": "none", "mlp_norm": "rms"}, "model.mlp_norm=rms: none has no nonlinearity"),
    ({"attention_keys": "input"}, "model.attention_keys.*set model.heads=1"),
    ({"attention_keys": "queries", "kv_heads": 2}, "model.attention_keys.*model.kv_heads"),
    ({"attention_values": "input", "head_dim": 4}, "model.attention_values.*heads x head_dim"),
    ({"attention": "linear", "attention_keys": "queries"}, "does nothing in linear")), ids=str)
def test_what_cannot_be_left_out_is_said(fields: dict[str, Any], message: str,
                                         make_config: MakeConfig) -> None:
  with pytest.raises(UserError, match=message):
    make_config(**{f"model__{name}": value for name, value in fields.items()})


def test_quantisation_leaves_out_what_there_is_not(make_config: MakeConfig) -> None:
  """And a stream that attention reads neuron by neuron cannot be rotated."""
  config = make_config(**ONE_HEAD, model__mlp="none", model__attention_keys="input",
                       model__attention_values="input")
  sites = schemes.of_model(schemes.Scheme(), config).sites
  assert "attn_query" in sites and "attn_in" in sites
  assert not [site for site in sites if site.startswith("mlp_") or site in (
      "attn_key", "attn_value", "attn_output")]
  with pytest.raises(UserError, match="attention_keys=input: attention reads the stream neuron"):
    rotate({}, config)
