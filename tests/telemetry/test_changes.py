"""Tests of what a step changes, against float64 sums, in every compute type and on meshes."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from of_jax.sweep.trainer import Sweep
from of_jax.telemetry.activations import Activations
from of_jax.telemetry.families.moment_updates import MomentUpdates
from of_jax.train.sharding import make_mesh
from of_jax.train.trainer import make_trainer
from of_jax.xla.pairs import Pair
from tests.planted import planted
from tests.telemetry import update_accuracy
from tests.telemetry.update_accuracy import (
    KEPT,
    UPDATES,
    a_batch,
    activations,
    error,
    error_of_sum,
    found_of,
    make_config,
    moved,
    reference,
)

pytestmark = pytest.mark.xdist_group("changes")
SMALL = {"model__width": 16, "model__depth": 2, "model__heads": 4, "train__batch_size": 8,
         "train__sequence_length": 16}
FEW = {"telemetry__sites": "resid_pre,mlp_hidden,final"}


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
  with planted(tmp_path_factory.mktemp("planted"), KEPT):
    yield


@pytest.mark.parametrize("is_split", (False, True))
def test_pairs_have_48_bits(is_split: bool) -> None:
  """Products, differences, quotients and sums that cancel, of numbers of many sizes."""
  rng = np.random.default_rng(0)
  x, y = (np.float32(rng.standard_normal((16, 32, 8)) * 10 ** rng.standard_normal((16, 32, 8)))
          for _ in range(2))
  y = np.where(rng.random(y.shape) < 0.5, x * np.float32(1 + 1e-5), y)

  @jax.jit
  def run(x: jax.Array, y: jax.Array) -> dict[str, Pair]:
    change = Pair.difference(y, x)
    return {"difference": change, "product": Pair.product(x, y), "quotient": change / y,
            "square": change * change,
            "mean": (Pair.exact(x) * change).total(0, 1) / jnp.float32(16),
            "cancelled": (Pair.exact(x) + Pair.product(x, -y).times(2)).total(2)}

  if is_split:
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    found = run(jax.device_put(x, split), jax.device_put(y, split))
  else:
    found = run(x, y)
  x64, y64 = np.float64(x), np.float64(y)
  change = y64 - x64
  expected: dict[str, tuple[Any, Any]] = {
      # name -> value, and the size of the terms that rounding is relative to.
      "difference": (change, change), "product": (x64 * y64, x64 * y64),
      "quotient": (change / y64, change / y64), "square": (change ** 2, change ** 2),
      "mean": ((x64 * change).sum(1).mean(0), np.abs(x64 * change).sum(1).mean(0)),
      "cancelled": ((x64 - 2 * x64 * y64).sum(-1), (np.abs(x64) + 2 * np.abs(x64 * y64)).sum(-1))}
  for name, (value, size) in expected.items():
    pair = np.float64(found[name].high) + np.float64(found[name].low)
    np.testing.assert_array_less(np.abs(pair - value), 2.0 ** -44 * np.abs(size) + 1e-300, name)
    # The first is the whole rounded to float32.
    np.testing.assert_array_equal(np.float32(pair), found[name].high, err_msg=name)


@pytest.mark.parametrize("fields", (
    pytest.param({}, id="float32", marks=pytest.mark.slow),
    pytest.param({"model__compute_dtype": "bfloat16", "model__remat": "full",
                  "train__grad_accumulation": 2}, id="bfloat16"),
    pytest.param({"model__compute_dtype": "bfloat16", "mesh__fsdp": 2, "mesh__tensor": 4, **FEW},
                 id="bfloat16 on (1, 2, 4)", marks=pytest.mark.slow),
    pytest.param({"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "model__scan_layers": False,
                  **FEW}, id="float32 on (2, 2, 2)", marks=pytest.mark.slow)))
def test_moment_updates(fields: dict[str, Any]) -> None:
  """Those of the activations that they are made of; of forward passes in float64, as a step's size
  allows; and of a step that is none, none."""
  config = make_config(**{**SMALL, **fields})
  large, small, none = update_accuracy.steps_of(config, (1e-3, 1e-5, 0))
  assert {site for site, _ in large} >= {"resid_pre", "mlp_hidden", "final"}
  for found, allowed in ((large, 2e-4), (small, 2e-2)):
    for site, one in found.items():
      truth = reference(*one.same)
      assert error(one.measured, truth) < 1e-6, site
      assert error_of_sum(one.measured, truth) < 1e-5, site
      for id_ in ("m2", "m4", "m2_u", "m4_u2", "m4_u4"):
        np.testing.assert_allclose(one.measured[id_], truth[id_], rtol=1e-6, err_msg=site)
      assert error(one.measured, reference(*one.passes["float64"])) < allowed, site
  for site, one in none.items():
    assert all(one.measured[id_] == 0 for id_ in ("m2_u", *UPDATES)), site


@pytest.mark.parametrize("at_once", (False, pytest.param(True, marks=pytest.mark.slow)))
def test_members_measure_as_alone(at_once: bool) -> None:
  """Two members on one device, in turn and at once, whose steps differ."""
  configs = [make_config(**SMALL, **FEW, model__compute_dtype="bfloat16", train__seed=seed,
                         model__beta=1)
             for seed in (0, 1)]
  sweep, batch = Sweep(configs, at_once), a_batch(configs[0])
  with jax.set_mesh(sweep.single_mesh):
    before, stepped = ([jax.device_get(sweep.trainer_of(configs[0]).init(
        jax.random.key(seed))["params"]) for seed in seeds] for seeds in ((0, 1), (2, 3)))
  after = [moved(*ends, 1e-4) for ends in zip(before, stepped)]
  with jax.set_mesh(sweep.mesh):
    kept = jax.device_get(sweep.trainer.side_programs["kept"].run(
        sweep.stacked(before), sweep.stacked(after), sweep.stacked([batch] * 2)))
  for member in range(2):
    exact = [activations(configs[0], params[member], batch["inputs"], "float64")
             for params in (before, after)]
    own = jax.tree.map(lambda x: x[member], kept)
    for site, one in found_of(own, {"float64": exact}).items():
      assert error(one.measured, reference(*one.same)) < 1e-6, site
      assert error_of_sum(one.measured, reference(*one.same)) < 1e-5, site
      assert error(one.measured, reference(*one.passes["float64"])) < 2e-3, site


def test_small_differences_are_the_same_program_in_every_compute_type() -> None:
  """Programs of change and of the quantised model hold no product of a lower precision."""
  texts: dict[str, list[str]] = {}
  for dtype in ("float32", "bfloat16"):
    config = make_config(**SMALL, model__compute_dtype=dtype, telemetry__sites="final",
                         telemetry__metrics="kept,m4_u1",
                         telemetry__quantised_perplexity_every=1)
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
      trainer = make_trainer(config, mesh)
      params = trainer.network.shapes
      batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), a_batch(config))
      for name, program in trainer.side_programs.items():
        arguments = (params, params, batch) if program.given == "across" else (params, batch)
        texts.setdefault(name, []).append(program.run.lower(*arguments).as_text())
  assert set(texts) == {"kept", "moment_updates", "quantised"}
  for name, (wide, narrow) in texts.items():
    assert wide == narrow, name
    products = re.findall(r"stablehlo.dot_general.*", wide)
    assert products and all("HIGHEST, HIGHEST" in product for product in products), name


def test_groups_and_tokens_without_squares() -> None:
  """Position 0 apart, padding left out, and NaN for the group of a token that has no square."""
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((4, 8, 6)))
  y = np.float32(x + 1e-3 * rng.standard_normal(x.shape))
  x[:, 0] *= 100
  weights = np.ones((4, 8), np.float32)
  weights[3, 5:] = 0
  y[3, 6] = np.nan

  @jax.jit
  def run(x: jax.Array, y: jax.Array) -> list[dict[str, jax.Array]]:
    family, both = MomentUpdates(), [Activations(z, None, jnp.asarray(weights)) for z in (x, y)]
    return [family.finish(family.of_change(*both), no_first) for no_first in (False, True)]

  for found, first in zip(run(x, y), (0, 1)):
    counts = weights[:, first:] > 0
    truth = reference(*(np.float64(z[:, first:][counts]) for z in (x, y)))
    for id_ in update_accuracy.IDS:
      np.testing.assert_allclose(found[id_], truth[id_], rtol=1e-6, atol=1e-7 * truth["unit"])
  y[1, 0, 2] = 3e38
  whole, rest = run(x, y)
  assert all(np.isnan(whole[id_]) for id_ in UPDATES)
  np.testing.assert_allclose(rest["m4_u1"], found["m4_u1"], rtol=1e-6)


@pytest.mark.parametrize("scale, step, lost", (
    (1, 0, ()), (1, 1e-3, ()), (1e-7, 0.1, ()), (1e-6, 1e-4, ("m4_u3", "m4_u4")),
    (1e-9, 0.1, ("m4", *UPDATES)), (1e-18, 0.1, update_accuracy.IDS)))
def test_what_float32_cannot_hold_is_null(scale: float, step: float, lost: tuple[str, ...]) -> None:
  """Not 0, nor a number that rounding made."""
  rng = np.random.default_rng(0)
  x, change = (rng.standard_normal((4, 8, 6)) for _ in range(2))
  both = [np.float32(scale * x * moved) for moved in (1, 1 + step * change)]
  family = MomentUpdates()
  found = family.finish(family.of_change(*(Activations(jnp.asarray(z)) for z in both)), False)
  truth = reference(*(np.float64(z).reshape(-1, 6) for z in both))
  for id_ in update_accuracy.IDS:
    if id_ in lost:
      assert np.isnan(found[id_]), id_
    else:
      np.testing.assert_allclose(found[id_], truth[id_], rtol=1e-3, err_msg=id_)
