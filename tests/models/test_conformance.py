"""The conformance table: every variant, one row, the same tests.

A row is compiled three times, and every test reads the results of these: initialisation with a
forward pass in bfloat16, the scanned model with its gradients, and the unrolled, recomputing model
with its gradients on a mesh.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from of_jax import variants
from of_jax.config import Config, traits
from of_jax.config.roles import ROLES
from of_jax.errors import UserError
from of_jax.models import partition
from of_jax.models.functional import build_network, named_leaves
from of_jax.models.norms import at_least_float32
from of_jax.models.probe import SITES
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train.sharding import make_mesh, place_batch
from tests.models import reference

# name -> fields; width 32, see conftest, and SIZE.
TABLE: dict[str, dict[str, Any]] = {
    "pre rms": {},
    "pre layer mlp-norm ss": {"model__norm": "layer", "model__final_norm": True,
                              "model__mlp_norm": "ss"},
    "pre srms everywhere": {"model__norm": "srms", "model__norm_eps_placement": "outside",
                            "model__qk_norm": "srms", "model__mlp_norm": "srms"},
    "pre qk-norm ss linear-bias": {"model__norm": "ss", "model__linear_bias": True,
                                   "model__qk_norm": "ss"},
    "pre crms head_dim": {"model__norm": "crms", "model__width": 30, "model__head_dim": 8},
    "pre dyt everywhere": {"model__norm": "dyt", "model__final_norm": True,
                           "model__qk_norm": "dyt", "model__mlp_norm": "dyt"},
    "pre power everywhere": {"model__norm": "power", "model__qk_norm": "power",
                             "model__mlp_norm": "power"},
    "pre l1": {"model__norm": "l1", "model__qk_norm": "l1"},
    "pre batch": {"model__norm": "batch", "model__qk_norm": "batch",
                  "model__positions": "rotary"},
    "pre unified everywhere": {"model__norm": "unified", "model__qk_norm": "unified",
                               "model__positions": "rotary", "model__mlp_norm": "unified"},
    "pre none": {"model__norm": "none", "model__qk_norm": "rms"},
    "pre qk-norm layer mlp-norm": {"model__qk_norm": "layer", "model__mlp_norm": "rms"},
    "pre down-scaled evonorm b0": {"model__beta": 0.1, "model__beta_trainable": True,
                                   "model__mlp": "evonorm_b0"},
    "pre tied rotary gelu": {"model__tied_embeddings": True, "model__positions": "rotary",
                             "model__mlp": "gelu"},
    "pre swiglu qk-bias": {"model__mlp": "swiglu", "model__qk_bias": True},
    "no mlp, symmetric": {"model__mlp": "none", "model__attention_keys": "queries",
                          "model__positions": "rotary"},
    "no mlp, collapsed": {"model__block": "op", "model__mlp": "none", "model__heads": 1,
                          "model__attention_keys": "input", "model__attention_values": "input",
                          "model__qk_norm": "rms"},
    "linear attention": {"model__attention": "linear", "model__positions": "none",
                         "model__linear_positions": "first", "model__linear_chunk": 6,
                         "model__norm_eps": 1e-2},
    "op": {"model__block": "op"},
    "op final norm": {"model__block": "op", "model__final_norm": True},
    "op tanh": {"model__block": "op", "model__qk_norm": "none", "model__attention_cap": 30},
    "op LayerScale": {"model__block": "op", "model__beta_trainable": True,
                      "model__beta_per_channel": True},
    "op released": {"model__block": "op", "model__first_attention_norm": True,
                    "model__norm_eps_placement": "outside_rms", "model__norm_eps": 1e-2,
                    "model__final_norm": True, "model__final_norm_kind": "layer",
                    "model__beta_trainable": True, "model__skip_gain": 0.8},
    "op alpha gelu": {"model__block": "op", "model__mlp": "gelu",
                      "model__mlp_input_scale": None},
    "post silu": {"model__block": "post", "model__mlp": "silu", "model__mlp_norm": "l1"},
    "post released": {"model__block": "post_released", "model__final_norm": True,
                      "model__norm": "layer"},
    "peri geglu": {"model__block": "peri", "model__embedding_norm": True,
                   "model__final_norm": True, "model__mlp": "geglu",
                   "model__attention_window": 5, "model__full_attention_every": 2,
                   "model__attention_scale": 0.25},
    "output qk-norm reglu": {"model__block": "output", "model__qk_norm": "rms",
                             "model__mlp": "reglu", "model__final_norm": True,
                             "model__qk_norm_over": "width", "model__kv_heads": 2},
    "mix grouped": {"model__block": "mix", "model__mix_alpha": 0.5, "model__kv_heads": 2,
                    "model__final_norm": True},
    "deepnorm sigma-Reparam": {"model__block": "deepnorm", "model__norm": "layer",
                               "model__sigma_reparam": "block"},
    "layernorm scaling glu": {"model__block": "layernorm_scaling", "model__mlp": "glu"},
    "parallel rotary leaky": {"model__block": "parallel", "model__positions": "rotary",
                              "model__mlp": "leaky_relu", "model__leaky_relu_slope": 0.2,
                              "model__mlp_norm": "batch"},
    "parallel two norms": {"model__block": "parallel_two_norms", "model__mlp": "gelu_exact",
                           "model__positions": "rotary", "model__rope_fraction": 0.5,
                           "model__skip_gain": 0.8, "model__logit_cap": 2},
    "residual scaled evonorm s0": {
        "model__block": "residual_scaled", "model__final_norm": True, "model__mlp": "evonorm_s0",
        "model__residual_scale": "inverse_depth"},
    "nap silu": {"model__block": "nap", "model__mlp": "silu", "model__mlp_norm": "layer"},
    "gated norm sglu": {"model__block": "gated_norm", "model__norm_gate_rank": 4,
                        "model__mlp": "sglu"},
    "clipped head gate": {"model__attention_softmax": "clipped", "model__attention_gate": "head",
                          "model__norm": "layer", "model__kv_heads": 2},
    "sink element gate": {"model__attention_sink": "key_value", "model__attention_cap": 30,
                          "model__attention_gate": "element", "model__kv_heads": 2},
    "sigma-Reparam OSP": {"model__sigma_reparam": "attention", "model__norm": "srms",
                          "model__embedding_projection": True, "model__mlp": "selu"},
}


def with_oracle(folder: str, table: Collection[str]) -> list[str]:
  """The variants of a folder that a table of tests/models/reference.py has."""
  return [name for name in variants.names(folder) if name in table]


NORMS = with_oracle("models/norms", reference.NORMS)
INNER_NORMS = ["auto", *(name for name in NORMS
                         if variants.literal("models/norms", name, "OVER_ANY_AXIS", False))]
# What the pairs are made of: any two of these meet in some row of `covering_rows`.
FACTORS: dict[str, list[Any]] = {
    "model__block": with_oracle("models/blocks", reference.BLOCKS),
    "model__norm": NORMS,
    "model__mlp": with_oracle("models/mlps", reference.MLPS),
    "model__attention_softmax": with_oracle("models/softmaxes", reference.SOFTMAXES),
    "model__attention_gate": with_oracle("models/gates", reference.GATES),
    "model__attention_sink": ["none", "key_value"],
    "model__sigma_reparam": ["none", "attention", "block"],
    "model__qk_norm": INNER_NORMS,
    "model__mlp_norm": INNER_NORMS,
    "model__kv_heads": [4, 2],
    "model__positions": ["learned", "rotary"],
    "model__embedding_projection": [False, True],
    "model__final_norm": [False, True],
}
# Matrices of gain near 1: logits and nonlinearities in the range that tells forms apart.
SIZE = {"model__depth": 2, "model__init_std": 0.2, "model__embedding_scale": 5}
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
MakeConfig = Callable[..., Config]


@dataclasses.dataclass(frozen=True)
class Examined:
  """One row's results, as NumPy arrays.

  Attributes:
    half_logits, dtypes: of the bfloat16 model: its logits, the types at its probes.
    later_logits: where the tokens from position 8 on are others.
    sites: site -> float32 or float64 [layers, batch, time, neurons].
    other_loss, other_gradients, other_sites: of the unrolled model on a mesh.
  """

  config: Config
  roles: dict[str, str]
  dtypes: set[Any]
  params: Any
  half_logits: np.ndarray
  logits: np.ndarray
  later_logits: np.ndarray
  loss: np.ndarray
  gradients: Any
  sites: dict[str, np.ndarray]
  other_loss: np.ndarray
  other_gradients: Any
  other_sites: dict[str, np.ndarray]


def tokens(batch: int = 4) -> np.ndarray:
  return np.random.default_rng(0).integers(1, 64, (batch, 16))


def changed(config: Config, **fields: Any) -> Config:
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def initialised(config: Config) -> tuple[Any, jax.Array, set[Any]]:
  """Parameters, the logits of the bfloat16 model, and the types that its probes saw."""
  network = build_network(changed(config, compute_dtype="bfloat16"))
  dtypes = set()

  def observe(site: str, x: jax.Array, first: jax.Array) -> None:
    dtypes.add(x.dtype)

  def run(key: jax.Array) -> Any:
    params = network.init(key)
    return params, network.apply(params, tokens(), observe=observe)[0]

  params, logits = jax.jit(run)(jax.random.key(0))
  return params, logits, dtypes


def value_and_grad(config: Config) -> Callable[[Any, Any], Any]:
  """(params, tokens) -> (loss, (logits, sites)), gradients."""
  network = build_network(config)

  def observe(site: str, x: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
    return {"x": at_least_float32(x)}

  def loss(params: Any, tokens_BxT: jax.Array) -> tuple[jax.Array, Any]:
    logits, statistics = network.apply(params, tokens_BxT, observe=observe)
    sites = {site: kept["x"] for site, kept in statistics.items()}
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 3]), (logits, sites)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def examine(config: Config, wide: bool = False) -> Examined:
  """Runs a row; `wide`: what is compared with itself is computed in float64."""
  with jax.enable_x64(wide):
    return _examine(config, wide)


def _examine(config: Config, wide: bool) -> Examined:
  network = build_network(config)
  drawn, half_logits, dtypes = initialised(config)
  params = drawn
  if wide:
    config = changed(config, compute_dtype="float64")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), drawn)
  plain = value_and_grad(config)
  (loss, (logits, sites)), gradients = plain(params, tokens())
  others = tokens()
  others[:, 8:] = others[:, 8:] % 63 + 1
  (_, (later_logits, _)), _ = plain(params, others)

  # One program for all three: were one not to equal the plain scan, neither would this.
  other = changed(config, scan_layers=False, remat="full")
  # One head cannot be split.
  shape = MESH if config.model.heads > 1 else {**MESH, "tensor": 1}
  mesh = make_mesh(dataclasses.replace(
      other, mesh=dataclasses.replace(other.mesh, **shape)))
  with jax.set_mesh(mesh):
    placed = jax.tree.map(
        lambda leaf, axes: jax.device_put(
            leaf, NamedSharding(mesh, partition.parameter_spec(axes))), params, network.axes)
    (other_loss, (_, other_sites)), other_gradients = value_and_grad(other)(
        placed, place_batch(mesh, {"tokens": tokens()})["tokens"])
  return Examined(config, named_leaves(network.roles), dtypes, *jax.device_get((
      drawn, half_logits, logits, later_logits, loss, gradients, sites, other_loss,
      other_gradients, other_sites)))


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


def check(row: Examined, wide: bool = False) -> None:
  """What every model must do; `wide` as in `examine`."""
  config, sites = row.config, row.sites
  leaves = named_leaves(row.params)
  assert row.roles.keys() == leaves.keys() and set(row.roles.values()) <= set(ROLES)
  assert all(leaf.dtype == np.float32 for leaf in leaves.values())

  # Shapes: every site, a value a layer, and nothing in it empty.
  model = config.model
  neurons = dict.fromkeys(SITES, model.width) | {
      "mlp_hidden": model.mlp_width,
      "attn_q": model.head_dim * model.heads, "attn_k": model.head_dim * model.kv_heads}
  assert set(sites) == set(SITES)
  if model.mlp == "none":
    # What is NaN is written as null.
    for site in [site for site in sites if site.startswith("mlp_")]:
      assert np.all(np.isnan(sites.pop(site))) and np.all(np.isnan(row.other_sites.pop(site)))
  for site, x in sites.items():
    assert x.shape == (1 if site == "final" else model.depth, 4, 16, neurons[site]), site
    assert np.all(np.square(x).sum((1, 2, 3)) > 0), site
  assert row.logits.shape == (4, 16, 64) and np.isfinite(row.loss)

  for name, gradient in named_leaves(row.gradients).items():
    assert np.all(np.isfinite(gradient)), name
    assert np.any(gradient != 0) or row.roles[name] == "running", name

  # Causality: what comes later moves its own logits and no earlier one, by no bit.
  if traits.mlp(model.mlp).causal:
    np.testing.assert_array_equal(row.later_logits[:, :8], row.logits[:, :8])
  else:
    assert np.all(np.any(row.later_logits[:, :8] != row.logits[:, :8], -1))
  assert np.all(np.any(row.later_logits[:, 8:] != row.logits[:, 8:], -1))

  # scan == loop, recomputed == kept, sharded == single.
  tolerance = 1e-10 if wide else 1e-5
  close({"loss": row.other_loss}, {"loss": row.loss}, tolerance / 10)
  close(row.other_gradients, row.gradients, tolerance)
  close(row.other_sites, sites, tolerance)

  # bfloat16: activations in it, logits in float32, both near the float32 model's.
  assert row.half_logits.dtype == np.float32 and row.dtypes == {jnp.dtype("bfloat16")}
  assert np.abs(row.half_logits - row.logits).max() < 0.05 * np.abs(row.logits).max()
  assert np.any(row.half_logits != row.logits)

  reference.check_block(config, row.params, sites)
  reference.check_attention(config, row.params, sites)
  reference.check_mlp(config, row.params, sites)


# These take five times as long as others do.
SLOW = ("deepnorm sigma-Reparam", "sigma-Reparam OSP")


@pytest.mark.parametrize("row", [
    pytest.param(row, marks=pytest.mark.slow) if row in SLOW else row for row in TABLE])
def test_conforms(row: str, make_config: MakeConfig) -> None:
  check(examine(make_config(**SIZE, **TABLE[row])))


@pytest.mark.parametrize("fields", ({"scan_layers": False}, {"remat": "full"}, {"remat": "dots"}),
                         ids=str)
def test_scan_and_remat_apart(fields: dict[str, Any], make_config: MakeConfig) -> None:
  config = make_config(model__depth=2)
  params = jax.jit(build_network(config).init)(jax.random.key(0))
  (loss, _), gradients = value_and_grad(config)(params, tokens())
  (other_loss, _), other_gradients = value_and_grad(changed(config, **fields))(params, tokens())
  close({"loss": other_loss}, {"loss": loss}, 1e-6)
  close(other_gradients, gradients)


@pytest.mark.slow
def test_checkpoints_hold_every_structure(make_config: MakeConfig, tmp_path: Path) -> None:
  """All rows' parameters in one checkpoint, by name, shape and bit."""
  rng = np.random.default_rng(0)
  params = {row: jax.tree.map(
      lambda leaf: rng.standard_normal(leaf.shape, np.float32),
      build_network(make_config(**fields)).shapes) for row, fields in TABLE.items()}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save({"params": params, "opt_state": {"count": np.zeros((), np.int32)}}, 1)
    checkpoints.wait()
    restored = named_leaves(checkpoints.load_host(1)["params"])
  assert restored.keys() == named_leaves(params).keys()
  for name, leaf in named_leaves(params).items():
    np.testing.assert_array_equal(restored[name], leaf, err_msg=name)


def covering_rows(make_config: MakeConfig) -> list[dict[str, Any]]:
  """Rows in which every two values of two FACTORS meet, unless a rule forbids them.

  Greedy: of some random rows that hold an open pair, the one that closes most.
  """
  rng = np.random.default_rng(0)
  names = list(FACTORS)
  pairs_open = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2)
                for x in FACTORS[a] for y in FACTORS[b]}
  rows: list[dict[str, Any]] = []
  while pairs_open:
    pair = min(pairs_open, key=str)
    best: tuple[set[Any], dict[str, Any]] = ({pair}, {})
    for _ in range(40):
      row = {name: values[rng.integers(len(values))] for name, values in FACTORS.items()}
      row |= dict(pair)
      met = set(itertools.combinations(row.items(), 2)) & pairs_open
      if len(met) > len(best[0]) or not best[1]:
        try:
          make_config(**row)
        except UserError:
          continue
        best = (met, row)
    if best[1]:
      rows.append(best[1])
    else:
      with pytest.raises(UserError):
        make_config(**dict(pair))
    pairs_open -= best[0]
  return rows


@pytest.mark.slow
def test_every_pair_conforms(make_config: MakeConfig) -> None:
  """In float64: how much of a float32 gradient is rounding depends on what is combined."""
  failed = []
  for fields in covering_rows(make_config):
    if fields["model__attention_softmax"] == "clipped":
      # At 16 tokens the default, -12 / 16, leaves some tokens no weight at all: a norm behind
      # attention would divide rounding by rounding.
      fields["model__softmax_gamma"] = -0.02
    try:
      check(examine(make_config(**SIZE, **fields), wide=True), wide=True)
    except Exception as error:
      failed.append(f"{fields}: {error}")
  assert not failed, "\n".join(failed)
