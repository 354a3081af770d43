"""The conformance table: every variant, one row, the same tests."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax import variants
from of_jax.config import Config
from of_jax.config_rules import ROLES
from of_jax.models.functional import Network, build_network, named_leaves
from of_jax.models.probe import SITES

# name -> fields; width 32, 2 layers, see conftest.
TABLE: dict[str, dict[str, Any]] = {
    "pre rms": {},
    "pre layer": {"model__norm": "layer", "model__final_norm": True},
    "pre srms": {"model__norm": "srms", "model__norm_eps_placement": "outside"},
    "pre ss linear-bias": {"model__norm": "ss", "model__linear_bias": True},
    "pre crms head_dim": {"model__norm": "crms", "model__width": 31, "model__head_dim": 8},
    "pre dyt": {"model__norm": "dyt", "model__final_norm": True},
    "pre power": {"model__norm": "power"},
    "pre none": {"model__norm": "none", "model__qk_norm": "rms"},
    "pre qk-norm layer": {"model__qk_norm": "layer"},
    "pre down-scaled": {"model__beta": 0.1, "model__beta_trainable": True},
    "pre tied rotary gelu": {"model__tied_embeddings": True, "model__positions": "rotary",
                             "model__mlp": "gelu"},
    "pre swiglu qk-bias": {"model__mlp": "swiglu", "model__qk_bias": True},
    "op": {"model__block": "op"},
    "op final norm": {"model__block": "op", "model__final_norm": True},
    "op tanh": {"model__block": "op", "model__qk_norm": "none", "model__attention_cap": 30},
    "op LayerScale": {"model__block": "op", "model__beta_trainable": True,
                      "model__beta_per_channel": True},
    "op released": {"model__block": "op", "model__first_attention_norm": True},
    "op alpha gelu": {"model__block": "op", "model__mlp": "gelu",
                      "model__mlp_input_scale": None},
}
MakeConfig = Callable[..., Config]


def tokens(seed: int = 0, batch: int = 2) -> np.ndarray:
  return np.random.default_rng(seed).integers(1, 64, (batch, 16))


def observe(site: str, x: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
  return {"sum_square": jnp.sum(jnp.square(x.astype(jnp.float32)), (0, 1))}


def built(config: Config) -> tuple[Network, Any]:
  network = build_network(config)
  return network, jax.jit(network.init)(jax.random.key(0))


def value_and_grad(config: Config, params: Any) -> tuple[Any, Any]:
  """((loss, statistics), gradients) of a cross-entropy-like scalar."""
  network = build_network(config)

  def loss(params: Any) -> tuple[jax.Array, Any]:
    logits, statistics = network.apply(params, tokens(), observe=observe, training=True)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 3]), statistics

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def changed(config: Config, **fields: Any) -> Config:
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
  """Leaf by leaf, against each leaf's largest entry.

  The floor is for gradients that are zero but for rounding, as of a key's offset, which adds the
  same to all of a query's logits.
  """
  floor = 1e-3 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(b))
  for name, value in named_leaves(a).items():
    other = named_leaves(b)[name]
    np.testing.assert_allclose(value, other, rtol=0, err_msg=name,
                               atol=tolerance * max(np.abs(other).max(), floor))


def test_table_has_every_variant() -> None:
  used = {"pre", "rms", "relu"} | {
      str(v) for row in TABLE.values() for k, v in row.items()}
  for folder in ("models/blocks", "models/norms", "models/mlps"):
    assert set(variants.names(folder)) <= used, folder


@pytest.mark.parametrize("row", TABLE)
def test_conforms(row: str, make_config: MakeConfig) -> None:
  """Shapes, roles, sites, finite gradients everywhere, scan == loop, remat == plain."""
  config = make_config(**TABLE[row], model__depth=2)
  network, params = built(config)
  roles = named_leaves(network.roles)
  assert roles.keys() == named_leaves(params).keys() and set(roles.values()) <= set(ROLES)

  (loss, statistics), grads = value_and_grad(config, params)
  assert np.isfinite(loss)
  for name, gradient in named_leaves(grads).items():
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), name
  assert set(statistics) == set(SITES)
  for site, kept in statistics.items():
    assert len(kept["sum_square"]) == (1 if site == "final" else config.model.depth), site
    assert np.all(kept["sum_square"].sum(-1) > 0), site

  # One program for both: were either not to equal the plain scan, neither would this.
  (other_loss, other_statistics), other_grads = value_and_grad(
      changed(config, scan_layers=False, remat="full"), params)
  close({"loss": other_loss}, {"loss": loss}, 1e-6)
  close(other_grads, grads)
  close(other_statistics, statistics)


@pytest.mark.parametrize("fields", ({"scan_layers": False}, {"remat": "full"}, {"remat": "dots"}),
                         ids=str)
def test_scan_and_remat_apart(fields: dict[str, Any], make_config: MakeConfig) -> None:
  config = make_config(model__depth=2)
  _, params = built(config)
  (loss, _), grads = value_and_grad(config, params)
  (other_loss, _), other_grads = value_and_grad(changed(config, **fields), params)
  close({"loss": other_loss}, {"loss": loss}, 1e-6)
  close(other_grads, grads)


@pytest.mark.parametrize("row", TABLE)
def test_is_causal(row: str, make_config: MakeConfig) -> None:
  """In evaluation: a logit's gradient with respect to a later token's embedding is exactly 0."""
  network, params = built(make_config(**TABLE[row], model__depth=2))
  distinct = np.arange(16)[None] + 5  # Each position has a token, and so a row, of its own.

  def logit(table: jax.Array, position: int) -> jax.Array:
    embedding = {**params["embedding"], "token": table}
    logits, _ = network.apply({**params, "embedding": embedding}, distinct)
    return jnp.sum(logits[0, position, 60:])  # Tokens that are not in the input: for tied tables.

  gradient = jax.jit(jax.grad(logit), static_argnums=1)(params["embedding"]["token"], 7)
  reached = np.any(gradient != 0, axis=-1)[5:21]
  assert reached[:8].all() and not reached[8:].any()


@pytest.mark.parametrize("row", TABLE)
def test_bfloat16(row: str, make_config: MakeConfig) -> None:
  """Computes in bfloat16, near the float32 result, with float32 parameters and logits."""
  config = make_config(**TABLE[row], model__depth=2)
  _, params = built(config)
  half = build_network(changed(config, compute_dtype="bfloat16"))
  single = build_network(config)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))

  dtypes: list[jnp.dtype] = []

  def record(site: str, x: jax.Array, first: jax.Array) -> None:
    dtypes.append(x.dtype)

  expected, _ = jax.jit(single.apply)(params, tokens())
  logits, _ = jax.jit(lambda p, t: half.apply(p, t, observe=record))(params, tokens())
  assert logits.dtype == jnp.float32 and set(dtypes) == {jnp.dtype("bfloat16")}
  assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
  assert np.any(logits != expected)
