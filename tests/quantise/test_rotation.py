"""A rotated model is the same function in float64, or is refused by name."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.models.functional import build_network, named_leaves
from of_jax.quantise.hadamard import check, rotation, rotation_of
from of_jax.quantise.rotation import rotate
from tests.models.test_conversions import trained_like

MakeConfig = Callable[..., Config]
SMALL = {"model__width": 24, "model__depth": 2, "model__heads": 2, "model__mlp_width": 16}


@functools.lru_cache(maxsize=2)
def _program(config: Config) -> Any:
  network = build_network(config)

  def observe(site: str, x: jax.Array, first: jax.Array | None) -> dict[str, jax.Array] | None:
    return {"x": x} if site == "resid_pre" else None

  @jax.jit
  def run(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BxTxD, table_DxV, kept = network.stream(params, tokens, observe=observe)
    return x_BxTxD @ table_DxV, kept["resid_pre"]["x"]

  return run


def outputs(params: Any, config: Config) -> tuple[np.ndarray, np.ndarray]:
  """Logits, and the stream entering each block, in float64."""
  with jax.enable_x64(True):
    wide = dataclasses.replace(config.model, compute_dtype="float64")  # type: ignore[arg-type]
    logits, stream = _program(dataclasses.replace(config, model=wide))(
        params, np.random.default_rng(1).integers(1, 64, (2, 16)))
    assert logits.dtype == np.float64
    return np.asarray(logits), np.asarray(stream)


def kurtosis(x: np.ndarray) -> float:
  squares = np.mean(np.square(x), (0, 1))
  return float(np.mean(squares ** 2) / np.mean(squares) ** 2)


# What reads, writes and norms the stream, each at least once; and the norms that keep its mean.
SAME: dict[str, dict[str, Any]] = {
    "tied rms": {"model__tied_embeddings": True, "model__final_norm": True,
                 "model__norm": "rms", "model__attention_gate": "element", "model__mlp": "swiglu",
                 "model__linear_bias": False, "model__attention_sink": "key_value",
                 "model__beta": 0.5, "model__beta_trainable": True,
                 "model__beta_per_channel": True},
    "layer with offsets": {"model__norm": "layer", "model__final_norm": True, "model__width": 20,
                           "model__positions": "rotary", "model__heads": 1,
                           "model__head_dim": 8, "model__qk_norm": "layer"},
    "op released": {"model__block": "op", "model__first_attention_norm": True,
                    "model__linear_bias": True, "model__skip_gain": 1.1, "model__beta": 0.4,
                    "model__beta_trainable": True},
    "post with one gain": {"model__block": "mix", "model__mix_alpha": 0.5, "model__norm": "ss",
                           "model__final_norm": True, "model__final_norm_kind": "rms",
                           "model__embedding_norm": True}}
SLOW: dict[str, dict[str, Any]] = {
    "projections": {"model__norm": "ss", "model__embedding_projection": True,
                    "model__tied_embeddings": True, "model__embedding_norm": True,
                    "model__final_norm": True},
    "peri crms": {"model__block": "peri", "model__norm": "crms", "model__width": 23,
                  "model__head_dim": 8, "model__final_norm": True},
    "output srms": {"model__block": "output", "model__norm": "srms"},
    "parallel layer": {"model__block": "parallel", "model__norm": "layer",
                       "model__linear_bias": True, "model__final_norm": True},
    "parallel two": {"model__block": "parallel_two_norms", "model__norm": "layer",
                     "model__norm_eps_placement": "outside", "model__norm_eps": 0.1},
    "nap": {"model__block": "nap"}, "post": {"model__block": "post", "model__norm": "srms"},
    "post released": {"model__block": "post_released", "model__norm": "crms"},
    "deepnorm": {"model__block": "deepnorm", "model__norm": "srms",
                 "model__beta": 0.5, "model__beta_trainable": True,
                 "model__beta_per_channel": True},
    "residual scaled": {"model__block": "residual_scaled", "model__logit_cap": 3.0},
    "layernorm scaling": {"model__block": "layernorm_scaling", "model__norm": "layer"}}


@pytest.mark.parametrize("form", (*SAME, *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW)))
def test_the_function_is_the_same(form: str, make_config: MakeConfig) -> None:
  params, config = trained_like(make_config(**{**SMALL, **{**SAME, **SLOW}[form]}))
  # An outlier that every token has.
  if config.model.embedding_projection:
    params["embedding_projection"]["entry"][:, 3] *= 40
  else:
    params["embedding"]["token"][:, 3] += 40
  if form == "layer with offsets":
    params["final_norm"]["bias"] += np.random.default_rng(2).normal(size=20)
  before = {name: leaf.copy() for name, leaf in named_leaves(params).items()}
  rotated = rotate(params, config)
  (logits, stream), (new_logits, new_stream) = outputs(params, config), outputs(*rotated)
  assert np.abs(logits).max() > 1
  np.testing.assert_allclose(new_logits, logits, rtol=0, atol=1e-10 * np.abs(logits).max())
  np.testing.assert_allclose(new_stream, stream @ rotation_of(config.model),
                             atol=1e-10 * np.abs(stream).max())
  assert kurtosis(stream[0]) > 10 and kurtosis(new_stream[0]) < 3
  for name, leaf in named_leaves(params).items():
    np.testing.assert_array_equal(leaf, before[name], err_msg="the given parameters have changed")


@pytest.mark.parametrize("width", (1, 16, 23, 24, 576))
def test_the_matrix(width: int) -> None:
  for keeps_mean in (False, True):
    q_DxD = rotation(width, keeps_mean)
    np.testing.assert_allclose(q_DxD @ q_DxD.T, np.eye(width), atol=1e-12)
    if keeps_mean:
      np.testing.assert_allclose(q_DxD.sum(0), np.ones(width), atol=1e-12)
    if width == 576:  # No neuron is left as it was, or is most of another.
      assert np.abs(q_DxD).max() < 0.15
  if width == 16:
    np.testing.assert_allclose(np.abs(rotation(width)), 0.25)


@pytest.mark.parametrize("fields, message", (
    ({"model__block": "post"}, "config.model.norm=rms: in block post its gains act"),
    ({"model__block": "peri", "model__norm": "layer"}, "config.model.norm=layer: in block peri"),
    ({"model__block": "gated_norm"}, "config.model.block=gated_norm: reads or writes"),
    ({"model__norm": "dyt"}, "config.model.norm=dyt: acts neuron by neuron"),
    ({"model__embedding_norm": True}, "config.model.embedding_norm=True: its gains act"),
    ({"model__final_norm": True, "model__final_norm_kind": "power"}, "final_norm_kind=power"),
    ({"model__attention_gate": "head"}, "attention_gate=head: each head reads its own neurons"),
    ({"model__sigma_reparam": "block"}, "sigma_reparam=block: the spectral norms"),
    ({"model__skip_gain": 1.0, "model__beta_trainable": True, "model__beta_per_channel": True},
     "skip_gain=1.0: skips have a gain a channel"),
    ({"model__block": "output", "model__norm": "srms", "model__beta": 0.5,
      "model__beta_trainable": True, "model__beta_per_channel": True},
     "beta_per_channel=True: in block output it acts behind a norm")))
def test_what_has_no_rotated_equal_is_refused(fields: dict[str, Any], message: str,
                                              make_config: MakeConfig) -> None:
  with pytest.raises(UserError, match=message) as caught:
    check(make_config(**fields))
  assert "\n" not in str(caught.value)


def test_an_offset_that_nothing_takes_up_is_refused(make_config: MakeConfig) -> None:
  params, config = trained_like(make_config(**SMALL, model__norm="layer"))
  params["stacks"]["0"]["mlp_norm"]["scale"][1, 2] = 0
  with pytest.raises(UserError, match="a gain of 0 beside an offset"):
    rotate(params, config)
  params["stacks"]["0"]["mlp_norm"]["bias"][1, 2] = 0
  np.testing.assert_allclose(outputs(*rotate(params, config))[0], outputs(params, config)[0],
                             atol=1e-9)
