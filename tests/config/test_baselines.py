"""Published baselines: the fields that the papers give, and that each of them trains."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from of_jax.commands import cli
from of_jax.config import Config, baselines, resolve
from of_jax.errors import UserError
from of_jax.models.functional import build_network, named_leaves
from of_jax.models.gates import make_gate
from of_jax.models.gates.head import HeadGate
from of_jax.models.probe import Context
from tests.train.test_variants_learn import losses

FILE = "experiments/configs/baselines.py"
GOLDEN = Path(__file__).parents[1] / "golden" / "opt_baselines.npz"


def config_of(name: str) -> Config:
  return resolve(baselines.baseline(name))


def test_every_name_is_a_config_and_no_other_name_is() -> None:
  assert len(baselines.NAMES) == 2 + 3 * 5
  for name in baselines.NAMES:
    assert cli.load_config(f"{FILE}:{name}") == config_of(name)
  with pytest.raises(UserError, match="baselines.py:opt_mlp_soap: no such baseline; there are"):
    cli.load_config(f"{FILE}:opt_mlp_soap")


def test_the_ladder_is_cumulative() -> None:
  """He et al. 2024, App. D: dropout off, then the rate, then eps, then SOAP with the old eps."""
  for block in baselines.BLOCKS:
    steps = [config_of(f"opt_{block}_{setting}") for setting in baselines.SETTINGS]
    found = [(c.model.dropout, c.optim.learning_rate, c.optim.eps, c.optim.name) for c in steps]
    assert found == [(0.1, 4e-4, 1e-8, "adamw"), (0, 4e-4, 1e-8, "adamw"), (0, 1e-3, 1e-8, "adamw"),
                     (0, 1e-3, 1e-5, "adamw"), (0, 1e-3, 1e-8, "soap")]
    assert {(c.optim.b2, c.optim.weight_decay, c.optim.warmup_steps, c.optim.clip_norm)
            for c in steps} == {(0.95, 0.1, 2_000, 1.0)}
    assert [c.optim.b1 for c in steps] == [0.9] * 4 + [0.95]
    # Dropout apart, one model through all of it.
    assert len({dataclasses.replace(c.model, dropout=0) for c in steps}) == 1
    model, train = steps[0].model, steps[0].train
    assert (model.init_std, model.position_init_std, model.embedding_dropout) == (0.006, 0.006, 0)
    assert (model.attention_init, steps[-1].optim.decay_norm_offsets) == ("uniform", False)
    assert (train.batch_size, train.sequence_length, train.steps) == (192, 512, 125_000)


def test_blocks_of_the_ladder() -> None:
  pre, gated, op = (config_of(f"opt_{block}_default").model for block in baselines.BLOCKS)
  assert gated == dataclasses.replace(pre, attention_gate="head") and pre.final_norm
  assert gated.attention_gate_init == 0.25
  assert (op.beta, op.beta_trainable, op.qk_norm, op.final_norm) == (0.2, True, "layer", False)
  # OPT-125m of Hugging Face has 125,239,296; its table has two rows of positions more, 2,050 of
  # them, where these have 512.
  shapes = named_leaves(build_network(config_of("opt_pre_default")).shapes)
  assert sum(leaf.size for leaf in shapes.values()) == 125_239_296 - (2_050 - 512) * 768


def test_gates_start_as_in_their_code() -> None:
  """At a quarter for zeros, and with the spread of theirs for what a LayerNorm leaves."""
  gate = make_gate(nnx.Rngs(0), config_of("opt_gated_default").model)
  assert isinstance(gate, HeadGate)
  x_BxTxD = np.random.default_rng(0).standard_normal((8, 64, 768)).astype(np.float32)
  heads_BxTxHxK = jnp.ones((8, 64, 12, 64))
  at_zero = gate(heads_BxTxHxK, jnp.zeros_like(x_BxTxD), Context(jnp.zeros((8, 64), int)))
  np.testing.assert_allclose(at_zero, 0.25, rtol=1e-6)
  gates = gate(heads_BxTxHxK, jnp.asarray(x_BxTxD), Context(jnp.zeros((8, 64), int)))
  theirs = np.load(GOLDEN)["gated_attention/gate"]
  # Of twelve heads' vectors each: 3 % by chance.
  np.testing.assert_allclose(np.std(gates), theirs, rtol=0.1)


def test_tweo_and_osp_are_the_papers() -> None:
  tweo, osp = config_of("tweo"), config_of("osp")
  assert (tweo.train.tweo_weight, tweo.train.tweo_threshold, tweo.train.tweo_power) == (0.01, 3, 4)
  count = sum(leaf.size for leaf in named_leaves(build_network(tweo).shapes).values())
  # GPT-2 has 124,439,808 with a vocabulary of 50,257.
  assert count == 124_439_808 + (50_304 - 50_257) * 768
  assert (osp.model.norm, osp.model.embedding_projection, osp.optim.name) == ("ss", True, "muon")
  assert osp.model.mlp_width == -(-8 * 2048 // 3 // 128) * 128
  network = build_network(osp)
  shapes = named_leaves(network.shapes)
  assert 1.35e9 < sum(leaf.size for leaf in shapes.values()) < 1.45e9
  roles = named_leaves(network.roles)
  of_projection = {roles[name] for name in shapes if name.startswith("embedding_projection")}
  assert of_projection == {"hidden"}, "Muon is for hidden matrices"
  assert {leaf.size for name, leaf in shapes.items() if "norm" in name} <= {1, 24}


def small(name: str, tokens: Path) -> Config:
  """The baseline at the tests' size, its rate and its term's strength for so few steps."""
  overrides = {
      "model.width": 32, "model.depth": 2, "model.heads": 2, "model.compute_dtype": "float32",
      "model.remat": "none", "train.batch_size": 8, "train.sequence_length": 16,
      "train.steps": 60, "train.grad_accumulation": 1, "data.corpus": f"tokens:{tokens}",
      "data.vocab_size": 64, "optim.warmup_steps": 5, "optim.learning_rate": 1e-2,
      "telemetry.level": "off", "mesh.data": 1}
  if name == "osp":
    overrides["model.mlp_width"] = 96
  if name.startswith("opt"):
    # Of 0.006 in a width of 768: the same size of what a matrix makes.
    overrides["model.init_std"] = 0.03
  return cli.load_config(f"{FILE}:{name}",
                         [(path, str(value)) for path, value in overrides.items()])


@pytest.mark.parametrize("name", [
    name if name == "osp" else
    pytest.param(name, marks=pytest.mark.slow) for name in baselines.NAMES])
def test_it_learns(name: str, token_file: Path) -> None:
  """From log(64) = 4.16 the loss falls by 0.3 at least: each token mostly decides the next."""
  curve = losses(small(name, token_file), np.load(token_file).astype(np.int32))
  assert np.mean(curve[-5:]) < np.mean(curve[:5]) - 0.3, curve[::10]
