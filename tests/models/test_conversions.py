"""Conversions compute the same function to float64 rounding, or say why they cannot."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.models import conversions
from of_jax.models.functional import build_network, named_leaves

MakeConfig = Callable[..., Config]
Model = tuple[Any, Config]


def trained_like(config: Config, seed: int = 0) -> Model:
  """Float64 parameters far from init: every gain, offset and bias random, every mean nonzero."""
  network = build_network(config)
  rng = np.random.default_rng(seed)
  starts = {"norm": 1.0, "gain": 0.5, "embedding": 0.2, "hidden": 0.02, "unembedding": 0.02}

  def draw(role: str, shape: Any) -> np.ndarray:
    return starts.get(role, 0.1) + 0.2 * rng.standard_normal(shape.shape)

  params = jax.tree.map(draw, network.roles, network.shapes)
  if "bias" in params.get("final_norm", {}):
    params["final_norm"]["bias"][...] = 0  # No bias follows it that could take it up.
  return params, config


def logits(model: Model) -> np.ndarray:
  """In float64 throughout, after checking that the parameters are those of the config."""
  params, config = model
  with jax.enable_x64(True):
    wide = dataclasses.replace(config.model, compute_dtype="float64")  # type: ignore[arg-type]
    network = build_network(dataclasses.replace(config, model=wide))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, network.shapes)
    tokens = np.random.default_rng(1).integers(1, 64, (2, 16))
    x_BxTxD, table_DxV, _ = jax.jit(lambda p: network.stream(p, tokens))(params)
    assert x_BxTxD.dtype == np.float64
    return np.asarray(x_BxTxD @ table_DxV)


def same(a: np.ndarray, b: np.ndarray) -> None:
  assert np.abs(a).max() > 1
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


FULL = {"model__norm": "layer", "model__final_norm": True, "model__linear_bias": True,
        "model__tied_embeddings": True, "model__qk_norm": "layer", "model__mlp": "swiglu",
        "model__beta": 0.5, "model__beta_trainable": True, "model__beta_per_channel": True,
        "model__depth": 2}


@pytest.mark.parametrize("fields", (FULL, {**FULL, "model__norm_eps_placement": "outside",
                                           "model__beta_per_channel": False, "model__mlp": "relu",
                                           "model__norm_eps": 0.1}),
                         ids=("inside LayerScale swiglu", "outside scalar relu"))
def test_layer_norm_to_rms_norm_to_crms_norm(fields: dict[str, Any],
                                             make_config: MakeConfig) -> None:
  layer = trained_like(make_config(**fields))
  before = {name: leaf.copy() for name, leaf in named_leaves(layer[0]).items()}
  rms = conversions.to_rmsnorm(*layer)
  crms = conversions.to_crmsnorm(*rms)
  expected = logits(layer)
  same(logits(rms), expected)
  same(logits(crms), expected)
  assert [m.norm for m in (rms[1].model, crms[1].model)] == ["rms", "crms"]
  assert (crms[1].model.width, crms[1].model.head_dim, crms[1].model.heads) == (31, 8, 4)
  assert not rms[1].model.tied_embeddings
  for name, leaf in named_leaves(layer[0]).items():
    np.testing.assert_array_equal(leaf, before[name], err_msg="the given parameters have changed")


@pytest.mark.parametrize("norm", ("layer", "rms", "ss", "dyt", "power"))
def test_folding_leaves_the_function_and_no_gain(norm: str, make_config: MakeConfig) -> None:
  given = trained_like(make_config(**{**FULL, "model__norm": norm, "model__depth": 1}))
  if norm == "power":  # A mean square is not negative.
    for place in (given[0]["final_norm"], given[0]["stacks"]["0"]["attention_norm"],
                  given[0]["stacks"]["0"]["mlp_norm"]):
      place["running_square"] = np.square(place["running_square"])
  params, config = conversions.fold_norms(*given)
  same(logits((params, config)), logits(given))
  assert config.model.norm == ("srms" if norm in ("rms", "ss") else norm)
  for name, leaf in named_leaves(params).items():
    if name.split("/")[-2] in ("attention_norm", "mlp_norm", "final_norm"):
      kind = name.split("/")[-1]
      assert kind in ("alpha", "running_square", "running_gradient", "running_steps") or np.all(
          leaf == (kind == "scale")), name


def test_the_parameters_keep_their_type(make_config: MakeConfig) -> None:
  params, config = trained_like(make_config(model__norm="rms"))
  params = jax.tree.map(np.float32, params)
  assert {leaf.dtype for leaf in jax.tree.leaves(conversions.fold_norms(params, config)[0])} == {
      np.dtype(np.float32)}


def test_what_has_no_exact_equal_is_refused(make_config: MakeConfig) -> None:
  def refuses(convert: Any, message: str, change: Any = None, **fields: Any) -> None:
    params, config = trained_like(make_config(**{**FULL, **fields}))
    if change:
      change(params)
    with pytest.raises(UserError, match=message):
      convert(params, config)

  def offset(params: Any) -> None:
    params["final_norm"]["bias"][...] = 1

  def projection(params: Any) -> None:
    params["stacks"]["0"]["attention"]["sink"] = np.ones(3)

  refuses(conversions.to_rmsnorm, "starts from layer", model__norm="rms")
  refuses(conversions.to_rmsnorm, "know pre alone", model__block="op")
  refuses(conversions.to_rmsnorm, "reads the stream itself", model__final_norm=False)
  refuses(conversions.to_rmsnorm, "needs model.linear_bias=true", model__linear_bias=False)
  refuses(conversions.fold_norms, "the unembedding never has one", offset)
  refuses(conversions.fold_norms, "stacks/0/attention/sink: .*do not know", projection)
  refuses(conversions.to_crmsnorm, "the stream has a mean", model__norm="rms")
