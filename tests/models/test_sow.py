"""Intermediates that a variant sows are sites, under scan, remat and gradients, and no more."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from of_jax.config import Config, declared_metrics
from of_jax.config.sites import every_own_site, own_sites
from of_jax.errors import UserError
from of_jax.models.functional import build_network, named_leaves
from of_jax.models.probe import Context
from of_jax.storage import run_directory
from of_jax.telemetry import Telemetry
from of_jax.train import train
from tests.planted import planted

MakeConfig = Callable[..., Config]

BLOCK = '''
"""Pre-Norm whose stream between its halves is sown, twice as large."""

from flax import nnx

from of_jax.models.blocks import pre

NORMS = "optional"
SITES = ("my_site",)


class SowingBlock(pre.PreNorm):
  """Pre-Norm."""

  def mlp_half(self, h_BxTxD, context):
    self.sow(nnx.Intermediate, "my_site", 2 * h_BxTxD)
    return super().mlp_half(h_BxTxD, context)
'''
NORM = '''
"""RMSNorm that sows what it divides by its root."""

from flax import nnx

from of_jax.models.norms import rms

SITES = ("before_norm",)


class SowingNorm(rms.RMSNorm):
  """RMSNorm."""

  def __call__(self, x, context):
    self.sow(nnx.Intermediate, "before_norm", x)
    return super().__call__(x, context)
'''


@pytest.fixture(autouse=True)
def sowing(tmp_path: Path) -> Iterator[None]:
  """A block and a norm that sow, and the same block without its declaration."""
  with planted(tmp_path / "variants", {
      "models/blocks/sowing.py": BLOCK, "models/norms/sowing_norm.py": NORM,
      "models/blocks/undeclared.py": BLOCK.replace('SITES = ("my_site",)', "")}):
    yield


def make_inputs() -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).integers(1, 64, (4, 16)))


def observe_all(site: str, x: jax.Array, first: jax.Array | None) -> dict[str, jax.Array]:
  del first
  return {"x": x}


def kurtosis(x_LxBxTxD: np.ndarray) -> np.ndarray:
  square_LxD = np.square(x_LxBxTxD.astype(np.float64)).mean((1, 2))
  return np.asarray(np.square(square_LxD).mean(1) / np.square(square_LxD.mean(1)))


def measured(config: Config, params: Any) -> tuple[Any, Any, Any]:
  """Gradients of a loss, its value and the finished telemetry of a config."""
  network, watched = build_network(config), Telemetry.of(config.telemetry)

  def loss(params: Any) -> tuple[jax.Array, Any]:
    logits, kept = network.apply(params, make_inputs(), observe=watched.observer())
    return jnp.mean(jnp.square(logits)), kept

  (value, kept), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return grads, value, jax.device_get(watched.finish(kept))


@pytest.mark.parametrize("fields", (
    {}, {"model__remat": "full"}, {"model__scan_layers": False}), ids=str)
def test_metrics_of_what_a_block_sows(fields: dict[str, Any], make_config: MakeConfig) -> None:
  """Equal NumPy's on the unrolled model's activations; gradients are those without telemetry."""
  config = make_config(model__block="sowing", telemetry__sites="my_site",
                       telemetry__metrics="kurtosis,rms", **fields)
  plain = make_config(model__block="pre", telemetry__level="off", **fields)
  network = build_network(config)
  params = network.init(jax.random.key(0))
  grads, value, found = measured(config, params)

  unrolled = build_network(make_config(model__block="sowing", model__scan_layers=False))
  _, kept = unrolled.apply(params, make_inputs(), observe=observe_all)
  sown, stream = (np.asarray(kept[site]["x"]) for site in ("my_site", "resid_mid"))
  np.testing.assert_array_equal(sown, 2 * stream)
  assert set(found) == {"my_site"}
  np.testing.assert_allclose(found["my_site"]["kurtosis"], kurtosis(sown), rtol=1e-5)
  np.testing.assert_allclose(
      found["my_site"]["rms"], np.sqrt(np.square(sown.astype(np.float64)).mean((1, 2, 3))),
      rtol=1e-5)

  plain_grads, plain_value, nothing = measured(plain, params)
  assert not nothing
  chex.assert_trees_all_equal((grads, value), (plain_grads, plain_value))


def test_nothing_of_it_is_kept(make_config: MakeConfig) -> None:
  """No parameter, no state of the module, and activations only while the observer reads them."""
  config = make_config(model__block="sowing", telemetry__sites="my_site")
  network = build_network(config)
  assert named_leaves(network.shapes).keys() == named_leaves(
      build_network(make_config()).shapes).keys()
  model = network.make(jax.random.key(0))
  before = nnx.to_flat_state(nnx.state(model)).paths
  watched = Telemetry.of(config.telemetry)
  model(make_inputs(), observe=watched.observer())  # type: ignore[operator]
  assert nnx.to_flat_state(nnx.state(model)).paths == before
  kept = jax.eval_shape(
      lambda params: network.apply(params, make_inputs(), observe=watched.observer())[1],
      network.shapes)
  activation = 3 * 4 * 16 * 32
  assert all(leaf.size < activation for leaf in jax.tree.leaves(kept))


def test_a_norm_is_watched_in_each_of_its_places(make_config: MakeConfig) -> None:
  fields = {"model__norm": "sowing_norm", "model__final_norm": True,
            "telemetry__metrics": "kurtosis"}
  config = make_config(
      telemetry__sites="attention_norm.before_norm,mlp_norm.before_norm,final_norm.before_norm",
      **fields)
  network = build_network(config)
  params = network.init(jax.random.key(0))
  _, _, found = measured(config, params)
  _, kept = network.apply(params, make_inputs(), observe=observe_all)
  assert found["final_norm.before_norm"]["kurtosis"].shape == (1,)
  for site, same in (("attention_norm", "resid_pre"), ("mlp_norm", "resid_mid")):
    np.testing.assert_allclose(found[f"{site}.before_norm"]["kurtosis"],
                               kurtosis(np.asarray(kept[same]["x"])), rtol=1e-5)
  with pytest.raises(UserError, match="sown in several places; name one, as in "
                                      "telemetry.sites=attention_norm.before_norm"):
    measured(make_config(telemetry__sites="before_norm", **fields), params)
  with pytest.raises(UserError, match="attn_norm.before_norm is watched, but no module"):
    measured(make_config(telemetry__sites="attn_norm.before_norm", **fields), params)


def test_what_is_sown_in_a_network_itself(make_config: MakeConfig) -> None:
  """In `enter` and `leave`, as outside of the blocks: one layer."""
  config = make_config(model__block="sowing")
  model = build_network(config).make(jax.random.key(0))

  class Entering(type(model)):  # type: ignore[misc]
    def enter(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
      self.sow(nnx.Intermediate, "my_site", x_BxTxD)
      return x_BxTxD

  entering = Entering.of_config(config, nnx.Rngs(params=jax.random.key(0)))
  with pytest.raises(UserError, match="my_site is sown in the blocks and outside of them"):
    entering(make_inputs(), observe=observe_all)


def test_names_are_declared_where_the_variant_is(make_config: MakeConfig) -> None:
  assert own_sites(make_config(model__block="sowing").model) == ("my_site",)
  assert set(every_own_site()) == {"my_site", "before_norm"}
  with pytest.raises(UserError, match="config.telemetry.sites=my_site: my_site is not one of"):
    make_config(telemetry__sites="my_site")
  with pytest.raises(UserError, match="my_sit is not one of .*did you mean my_site"):
    make_config(model__block="sowing", telemetry__sites="my_sit")
  with pytest.raises(UserError, match="no gradient reaches what a module sows"):
    make_config(model__block="sowing", telemetry__sites="my_site",
                telemetry__metrics="activation_gradient_kurtosis")
  network = build_network(make_config(model__block="undeclared"))
  with pytest.raises(UserError, match=r"SowingBlock sows my_site, which no file declares; write "
                                      r'SITES = \("my_site",\) at the top of '
                                      r"of_jax/models/blocks/undeclared.py"):
    jax.eval_shape(network.apply, network.shapes, make_inputs())


def test_a_run_logs_it(make_config: MakeConfig, tmp_path: Path) -> None:
  """Metrics of activations and of what a step changed, those of every site at a full level."""
  full = make_config(model__block="sowing", telemetry__sites="my_site", telemetry__level="full")
  families = declared_metrics.families()
  assert {name for name, sites in declared_metrics.select(
      full.telemetry, "transformer").sites.items() if sites == ("my_site",)} == {
          name for name, family in families.items()
          if family.kind in ("activations", "change") and not family.sites}
  config = make_config(model__block="sowing", telemetry__sites="my_site",
                       telemetry__metrics="kurtosis,m4_u1", train__steps=1, model__depth=1)
  train(config, tmp_path / "run", lambda line: None)
  logged = [record["telemetry"]["my_site"]
            for record in run_directory.read_lines(tmp_path / "run" / "metrics.jsonl")
            if "telemetry" in record and record["split"] == "train"]
  assert logged and {name for metrics in logged for name in metrics} == {
      "kurtosis", "kurtosis_no_first", "m4_u1"}


def test_names_need_no_jax() -> None:
  code = "import sys, of_jax.config.sites as s; s.every_own_site(); assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
