"""The preset bondarenko on models that are no OPT: all that such a model computes is rounded, and a
mesh gives what one device does."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding

from of_jax.analysis import quantisation
from of_jax.analysis.evaluation import network_of
from of_jax.config import Config
from of_jax.models import partition
from of_jax.quantise import parameters
from of_jax.quantise import scheme as schemes
from of_jax.quantise.numerics import Quantised
from of_jax.train.sharding import make_mesh

MakeConfig = Callable[..., Config]
BITS = 4
# What the model has -> the sites of activations that it then has not, of all.
_NO_SUMS, _NO_PROJECTION = {"attn_sum", "mlp_sum"}, {"final_norm"}
MODELS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "rms tied": ({"model__norm": "rms", "model__positions": "rotary", "model__linear_bias": False,
                  "model__tied_embeddings": True, "model__mlp": "swiglu", "model__qk_norm": "rms"},
                 _NO_SUMS | _NO_PROJECTION),
    "post": ({"model__block": "post", "model__norm": "layer", "model__linear_bias": True},
             _NO_PROJECTION),
    "deepnorm": ({"model__block": "deepnorm", "model__norm": "rms", "model__positions": "rotary"},
                 _NO_PROJECTION),
    "op": ({"model__block": "op", "model__embedding_projection": True}, _NO_SUMS),
    "peri": ({"model__block": "peri", "model__norm": "rms", "model__kv_heads": 2},
             _NO_SUMS | _NO_PROJECTION),
    "parallel": ({"model__block": "parallel", "model__norm": "rms", "model__final_norm": True},
                 _NO_SUMS | _NO_PROJECTION)}


class Recorder(Quantised):
  """Keeps every activation as those behind it read it, and what each linear map reads."""

  def activation(self, site: str, x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
    y, _ = super().activation(site, x, layer)
    return y, {"values": y}

  def product(self, name: str, site: str, linear: Any, x: jax.Array, layer: Any
              ) -> tuple[jax.Array, Any]:
    return super().product(name, site, linear, x, layer)[0], {"values": x}


def drawn(config: Config) -> tuple[Any, list[dict[str, np.ndarray]]]:
  """A model whose gains and matrices are worth rounding, and two batches."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda w: np.asarray(w * np.exp(0.3 * rng.normal(size=w.shape)) * (4 if w.ndim > 2 else 1),
                           np.float32), network_of(config).init(jax.random.key(0)))
  for part in {"embedding", "unembedding"} & params.keys():
    # So that logits are not near 0 all.
    params[part] = jax.tree.map(lambda w: 10 * w, params[part])
  tokens = rng.integers(0, config.data.vocab_size, (2, 8, 17)).astype(np.int32)
  return SimpleNamespace(config=config, params=params), [
      {"inputs": rows[:, :-1], "targets": rows[:, 1:], "weights": np.ones((8, 16), np.float32)}
      for rows in tokens]


def most_values(kept: Any) -> int:
  """How many numbers there are in the layer that has most."""
  values = np.asarray(kept["values"], np.float32)
  return max(np.unique(layer[np.isfinite(layer)]).size for layer in values)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name == "rms tied" else pytest.mark.slow) for name in MODELS])
def test_all_that_a_model_computes_is_rounded(name: str, make_config: MakeConfig) -> None:
  fields, absent = MODELS[name]
  config = make_config(model__depth=2, **fields)
  model, batches = drawn(config)
  theirs = schemes.preset_scheme("bondarenko", weight_bits=BITS, activation_bits=BITS)
  scheme = schemes.of_model(theirs, config)
  present = set(quantisation.sites_of(config, "bondarenko")) & set(scheme.sites)
  found = quantisation.calibrate(model, batches[:1], theirs)
  # Ranges of those sites that the model has, and of no other.
  assert set(found.ranges) == present & set(schemes.ACTIVATIONS) and not absent & present
  chosen = {site: site in scheme.sites for site in schemes.SITES}
  network = network_of(config)
  rounded = parameters.rounded(network, model.params, scheme, found.bounds, chosen)
  kept = network.stream(rounded, batches[0]["inputs"], numerics=Recorder(
      scheme, found.bounds, found.ranges, chosen))[2]
  # Also where nothing is rounded any more, since it was before: masked logits have one more.
  for site, values in kept.items():
    if site == "final_norm" and site not in present:
      continue  # The same number as `final`, which is rounded there.
    assert most_values(values) <= 2 ** BITS + (site == "attn_logits"), site
  assert set(kept) > present & set(schemes.ACTIVATIONS)
  flat = flatten_dict(rounded)
  tables = {path: (site, stacked) for path, site, stacked in parameters.sites(network)}
  for path, (site, stacked) in tables.items():
    values = np.asarray(flat[path])
    assert site in present
    assert most_values({"values": values if stacked else values[None]}) <= 2 ** BITS, path
  # What is left over is what their code leaves: offsets, gains of a branch, the unembedding; and
  # kernels, which the linear maps round.
  for path in flat.keys() - tables.keys():
    np.testing.assert_array_equal(flat[path], flatten_dict(model.params)[path])
    assert path[-1] in ("bias", "kernel", "value") or flat[path].ndim < 2, path
  lost = quantisation.loss(model, batches, theirs, found) - quantisation.plain_loss(
      model, batches)[0]
  assert abs(lost) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ("rms tied", "post", "op"))
def test_a_mesh_gives_what_one_device_does(name: str, make_config: MakeConfig) -> None:
  """(2, 2, 2): 16 bits, so that a number that is rounded the other way changes little."""
  config = make_config(model__depth=2, mesh__data=2, mesh__fsdp=2, mesh__tensor=2,
                       **MODELS[name][0])
  model, batches = drawn(config)
  network, mesh = network_of(config), make_mesh(config)
  scheme = schemes.preset_scheme("bondarenko", weight_bits=4, activation_bits=16)
  one = quantisation.calibrate(model, batches, scheme)
  loss = quantisation.loss(model, batches, scheme, one)
  with jax.set_mesh(mesh):
    placed = dataclasses.replace(quantisation.Changed(config, model.params), params=jax.tree.map(
        lambda w, axes: jax.device_put(w, NamedSharding(mesh, partition.parameter_spec(axes))),
        model.params, network.axes))
    rows = [{key: jax.device_put(value, NamedSharding(mesh, partition.batch_spec(value.ndim)))
             for key, value in batch.items()} for batch in batches]
    assert len(jax.tree.leaves(placed.params)[0].sharding.device_set) == 8
    eight = quantisation.calibrate(placed, rows, scheme)
    assert quantisation.loss(placed, rows, scheme, eight) == pytest.approx(loss, abs=2e-5)
  assert set(eight.ranges) == set(one.ranges) and set(eight.bounds) == set(one.bounds)
  for key, bound in one.bounds.items():
    np.testing.assert_allclose(eight.bounds[key], bound, rtol=1e-6, err_msg=key)
  for site, (low, high) in one.ranges.items():
    size = np.max(np.asarray(high) - np.asarray(low))
    for ours, theirs in zip(eight.ranges[site], (low, high)):
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * size, err_msg=site)
  assert abs(loss - quantisation.plain_loss(model, batches)[0]) > 1e-4
