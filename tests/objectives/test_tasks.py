"""Tasks: a kind of model is one task file and its model file; attention need not be causal."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax import variants
from of_jax.config import Config, apply_overrides
from of_jax.config.kinds import FOLDER, kind_of, kinds_on
from of_jax.models import attention
from of_jax.models.probe import SITES, Context
from of_jax.objectives.tasks import task_of
from of_jax.storage import run_directory
from of_jax.train import train
from tests.planted import planted

ROOT = Path(__file__).parents[2]

# A kind of a few lines: the mean of a sequence's embedded tokens, without blocks of attention.
TASK = '''
"""A bag of tokens that predicts each next token."""

import jax
import jax.numpy as jnp

from of_jax.objectives.losses import cross_entropy
from of_jax.objectives.tasks import Task, parameters_multiplied

INPUTS = "tokens"
SEQUENCE_LENGTH = None
SITES = ("resid_pre", "mlp_in", "mlp_hidden", "mlp_out", "final")
HAS_ATTENTION = False
HIDDEN_RATIO = 2
READS = None
LOSS = "cross-entropy"
STARTS_AT_ZERO = False
IS_QUANTISABLE = False


class Bag(Task):
  """Cross-entropy of the next token."""

  def objective(self, config, x_BxTxD, table_DxV, batch, z_loss):
    return cross_entropy(x_BxTxD, table_DxV, batch["targets"], batch["weights"], z_loss, None)

  def inputs(self, config, rows):
    return jax.ShapeDtypeStruct(rows, jnp.int32)

  def flops_per_token(self, config, network):
    return 6 * parameters_multiplied(network, ("hidden", "unembedding"))
'''
MODEL = '''
"""A bag of tokens: the network."""

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.models.parameter import Linear, normal, parameter
from of_jax.models.probe import Context
from of_jax.models.residual_mlp import ResidualLayer
from of_jax.models.stack import StackedNetwork, stacked


class Bag(StackedNetwork):
  """Running means of token vectors through residual MLPs."""

  def __init__(self, config, rngs):
    model, vocab = config.model, config.data.vocab_size
    self.model = model
    self.token = parameter(rngs, (vocab, model.width), normal(1.0), "embedding",
                           ("vocab", "embed"))
    self.stacks = nnx.Dict({"0": stacked(ResidualLayer, model.depth, model, rngs)})
    self.unembedding = Linear(rngs, (model.width, vocab), ("embed", "vocab"), model.init_std,
                              role="unembedding")

  @classmethod
  def of_config(cls, config, rngs):
    return cls(config, rngs)

  def unembedding_table(self):
    return self.unembedding.kernel[...]

  def stream(self, inputs, documents_BxT=None, *, dropout_key=None, observe=None, intervene=None,
             penalise=None, training=False, numerics=None):
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)

    def context(key, layer):
      return Context(positions, layer=layer, dropout_key=key, observe=observe,
                     intervene=intervene, training=training, numerics=numerics)

    x = jnp.take(self.token[...], inputs, axis=0)
    x = jnp.cumsum(x, 1) / (1 + jnp.arange(inputs.shape[1]))[None, :, None]
    return self.run_stacks(x, context, dropout_key, penalise)
'''


@pytest.fixture
def bag(tmp_path: Path) -> Iterator[None]:
  """A kind `bag` beside those of the package, gone again behind the test."""
  with planted(tmp_path / "bag", {f"{FOLDER}/bag.py": TASK, "models/bag.py": MODEL}):
    yield


@pytest.mark.usefixtures("bag")
def test_a_kind_is_a_task_and_a_model(make_config: Callable[..., Config], tmp_path: Path) -> None:
  """Trains, evaluates and watches a kind that nothing but its two files knows."""
  config = make_config(model__kind="bag", train__steps=12, optim__learning_rate=1e-2,
                       telemetry__level="full")
  assert config.model.mlp_width == 2 * config.model.width
  train(config, tmp_path / "run", lambda line: None)
  records = list(run_directory.read_lines(tmp_path / "run" / "metrics.jsonl"))
  trained = [record for record in records if record["split"] == "train"]
  assert trained[-1]["loss"] < trained[0]["loss"] - 0.05
  assert set(trained[0]["telemetry"]) == set(kind_of("bag").sites)
  environment = run_directory.read_json(tmp_path / "run" / "env.json")
  assert environment["flops_per_token"] == 6 * (3 * 2 * 32 * 64 + 32 * 64)


def test_kinds_are_named_in_their_own_files_alone() -> None:
  """No code compares `model.kind` with a name: what differs is asked of the kind."""
  names = set(variants.names(FOLDER))
  for folder in ("of_jax", "experiments"):
    for path in (ROOT / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Compare, ast.MatchValue)):
          compared = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
          assert not compared & names, f"{path}:{node.lineno} compares with {compared & names}"


def test_the_kinds_that_there_are() -> None:
  assert kinds_on("tokens") == ("transformer",) and kinds_on("images") == ("residual_mlp",)
  for name in variants.names(FOLDER):
    assert set(kind_of(name).sites) <= {*SITES}
    assert task_of(name).kind is kind_of(name)


def test_a_batch_is_as_the_task_says(make_config: Callable[..., Config]) -> None:
  config = make_config(data__cross_documents=False, data__end_token_id=0)
  batch = task_of("transformer").batch(config)
  assert {name: (part.shape, part.dtype) for name, part in batch.items()} == {
      "inputs": ((8, 16), jnp.int32), "targets": ((8, 16), jnp.int32),
      "weights": ((8, 16), jnp.float32), "documents": ((8, 16), jnp.int32)}


@pytest.mark.parametrize("fields", (
    {}, {"model.attention_cap": "2"}, {"model.attention_window": "3"}, {"model.qk_norm": "rms"}),
    ids=str)
def test_attention_that_is_not_causal(fields: dict[str, str]) -> None:
  """Equals softmax(q k^T) v over every key, which the causal form does not."""
  from flax import nnx
  config = apply_overrides(Config(), [("model.width", "16"), ("model.heads", "2"),
                                      *fields.items()]).model
  layer = attention.Attention(nnx.Rngs(0), config)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 16)), jnp.float32)
  positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
  seen: dict[str, Any] = {}

  def run(is_causal: bool) -> jax.Array:
    context = Context(positions, is_causal=is_causal, observe=lambda site, x, first: {"x": x})
    y = layer(x, context)
    seen.update({site: np.asarray(kept["x"], np.float64)
                 for site, kept in context.collected.items()})
    return y

  y = np.asarray(run(False))
  q, k = (seen[site].reshape(2, 7, 2, 8) for site in ("attn_q", "attn_k"))
  v = np.asarray(layer.value(x), np.float64)
  logits = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(8)
  if config.attention_cap is not None:
    logits = config.attention_cap * np.tanh(logits / config.attention_cap)
  if config.attention_window is not None:
    distance = np.abs(np.arange(7)[:, None] - np.arange(7))
    logits = np.where(distance < config.attention_window, logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  wanted = np.einsum("bhts,bshk->bthk", weights, v).reshape(2, 7, 16)
  wanted = wanted @ np.asarray(layer.out.kernel[...], np.float64).reshape(16, 16)
  np.testing.assert_allclose(y, wanted, atol=2e-6)
  assert not np.allclose(y, run(True), atol=1e-4)
