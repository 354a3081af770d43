"""The preset bondarenko: the authors' whole quantised OPT, their grids in NumPy, and which sites
other models have."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.analysis import quantisation
from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.models.functional import build_network
from of_jax.quantise import bondarenko, parameters, quantisers
from of_jax.quantise import scheme as schemes
from of_jax.quantise.numerics import grouped_bound, weight_grid
from tests.fidelity import quantisation as fidelity
from tests.golden import quantised_opt as golden

THEIRS = schemes.preset_scheme("bondarenko")


@pytest.mark.parametrize("name, label", [
    pytest.param(name, label, marks=() if (name, label) == ("outlier", "W4A8") else (
        pytest.mark.slow)) for name in golden.MODELS for label in golden.BITS])
def test_their_whole_model(name: str, label: str) -> None:
  found = fidelity.measured(name, label)
  assert found["plain"] < 1e-5 and found["lost"] > 0.01
  assert found["ranges"] < 1e-5 and found["steps"] < 1e-5
  assert found["codes"] < 1e-3 and found["loss"] < 1e-3


def test_the_outlier_costs_what_it_does() -> None:
  """Else nothing would tell a preset that leaves the gains alone."""
  z = fidelity.numbers()
  lost = {name: float(z[f"{name}/W4A8/loss"] - z[f"{name}/loss"]) for name in golden.MODELS}
  assert lost["outlier"] > 3 * lost["plain"]


def plain_search(w: np.ndarray, bits: int) -> float:
  """Their search over one tensor, in NumPy."""
  least, most = (0, 2 ** bits - 1) if w.min() >= 0 else (-2 ** (bits - 1), 2 ** (bits - 1) - 1)
  bounds = (np.abs(w).max() + 0.5) / 100 * np.arange(1, 101)
  errors = [np.sum((np.clip(np.round(w / (b / most)), least, most) * b / most - w) ** 2)
            for b in bounds]
  return float(bounds[int(np.argmin(errors))])


_RNG = np.random.default_rng(0)
TENSORS = {"kernel": 0.02 * _RNG.normal(size=(24, 16)), "large": 9 * _RNG.normal(size=(8, 16)),
           "gains": 1 + 0.1 * _RNG.normal(size=(1, 32)), "zeros": np.zeros((4, 4)),
           "negative": -1 - _RNG.random((3, 8)), "a gain of 30": np.r_[np.ones(31), 30][None]}


@pytest.mark.parametrize("bits", (4, 6, 8, 16))
def test_their_grid_and_search(bits: int) -> None:
  for name, tensor in TENSORS.items():
    w = tensor.astype(np.float32)
    scheme = dataclasses.replace(THEIRS, weight_bits=bits)
    bound = grouped_bound(jnp.asarray(w)[None], scheme)
    expected = plain_search(w.astype(np.float64), bits)
    np.testing.assert_allclose(bound.item(), expected, rtol=1e-6, err_msg=name)
    most = 2 ** (bits - (w.min() < 0)) - 1
    least = -most - 1 if w.min() < 0 else 0
    rounded = np.clip(np.round(w / (expected / most)), least, most) * expected / most
    found = np.asarray(weight_grid(jnp.asarray(w), bound, scheme)(jnp.asarray(w))[0])
    # Of 2^16 numbers a float32 may come to the one beside.
    step = expected / most if bits == 16 else 0
    np.testing.assert_allclose(found, rounded, rtol=1e-5, atol=1.01 * step, err_msg=name)


def test_their_grid_of_activations() -> None:
  x = np.asarray([-3.0, -0.2, 0, 0.4, 5], np.float32)
  grid = bondarenko.activation_grid(jnp.asarray(-2.0), jnp.asarray(3.0), 4)
  # (3 + 2) / 15 a step, and 0 is the sixth number.
  np.testing.assert_array_equal(grid.integers(x), [0, 5, 6, 7, 15])
  empty = bondarenko.activation_grid(jnp.zeros(()), jnp.zeros(()), 8)
  assert np.isfinite(np.asarray(empty(x))).all()


@pytest.mark.parametrize("count", (5, 100_001, 300_000, 2 ** 24 + 12_345))
def test_percentiles_of_many_values(count: int) -> None:
  x = np.random.default_rng(0).standard_normal(count).astype(np.float32) ** 3
  found = quantisers.activation_range(jnp.asarray(x), (0,), 8, "percentile")
  expected = np.percentile(x.astype(np.float64), (100 - 99.999, 99.999))
  np.testing.assert_allclose(np.ravel(found), expected, rtol=3e-7)


# Overrides of a model -> what it has not, and what it has.
SITES: tuple[tuple[dict[str, object], set[str], set[str]], ...] = (
    ({"model__norm": "rms", "model__positions": "rotary"},
     {"position_table", "attn_sum", "final_norm", "attn_logits"},
     {"token_table", "norm_gains", "attn_in", "attn_scores", "attn_context"}),
    ({"model__block": "op", "model__final_norm": False}, {"attn_in", "mlp_in", "final"},
     {"resid_mid", "resid_post", "norm_gains"}),
    ({"model__block": "post", "model__norm": "layer"}, {"attn_in", "mlp_in"},
     {"attn_sum", "mlp_sum"}),
    ({"model__norm": "srms", "model__final_norm": True, "model__positions": "learned"},
     {"norm_gains"}, {"final", "position_table"}),
    ({"model__embedding_projection": True, "model__final_norm": True}, set(),
     {"final_norm", "embedding_projection", "final"}))


@pytest.mark.parametrize("fields, without, having", SITES)
def test_sites_of_other_models(fields: dict, without: set[str], having: set[str],
                               make_config: Callable[..., Config]) -> None:
  config = make_config(**fields)
  found = set(schemes.of_model(THEIRS, config).sites) & set(
      quantisation.sites_of(config, "bondarenko"))
  assert having <= found and not without & found
  # What linear maps read is rounded where it is made; of_jax has not changed.
  assert not {"attn_heads", "unembedding", "attn_gate"} & found


def test_a_tied_unembedding_reads_the_table_as_it_is(make_config: Callable[..., Config]) -> None:
  config = make_config(model__tied_embeddings=True, model__norm="layer")
  network = build_network(config)
  import jax
  params = network.init(jax.random.key(0))
  scheme = dataclasses.replace(THEIRS, weight_bits=4)
  bounds = parameters.bounds(network, params, scheme)
  new = parameters.rounded(network, params, scheme, bounds, dict.fromkeys(schemes.SITES, True))
  token = np.asarray(params["embedding"]["token"])
  assert len(np.unique(new["embedding"]["token"])) <= 16 < len(np.unique(token))
  np.testing.assert_array_equal(network.unembedding_table(params), token.T)
  gains = new["stacks"]["0"]["attention_norm"]
  # Gains of 1 come to the nearest number of a coarse grid, offsets stay.
  assert np.unique(gains["scale"]).size == 1
  np.testing.assert_array_equal(gains["bias"], params["stacks"]["0"]["attention_norm"]["bias"])
  rows = dataclasses.replace(scheme, weight_granularity="channel")
  assert parameters.bounds(network, params, rows)["embedding/token"].size == len(token)


@pytest.mark.parametrize("fields, part", (
    ({"arithmetic": "integer"}, "preset=bondarenko: their code rounds numbers in float"),
    ({"preset": "bondarenk"}, "did you mean bondarenko")))
def test_a_mistake_is_one_line(fields: dict, part: str) -> None:
  with pytest.raises(UserError, match=part):
    schemes.check(dataclasses.replace(THEIRS, **fields))


def test_labels_and_groups() -> None:
  assert THEIRS.label == "W8A8 (bondarenko)" and THEIRS.bits == "W8A8"
  weights = schemes.expand(["weights"], "", "bondarenko")
  assert {"token_table", "norm_gains"} < set(weights) and "attn_gate" not in weights
  assert not {"token_table", "norm_gains"} & set(schemes.expand(["weights"], ""))
