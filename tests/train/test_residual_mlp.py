"""The residual MLP on images: what it computes, one run of it, and training some roles alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from of_jax import config as config_lib
from of_jax.config import Config, presets
from of_jax.errors import UserError
from of_jax.models.functional import build_network, named_leaves
from of_jax.objectives.losses import squared_error
from of_jax.objectives.tasks import task_of
from of_jax.optim import build_optimizer
from of_jax.storage import run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import environment, train
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.trainer import make_trainer

pytestmark = pytest.mark.xdist_group("images")

MakeConfig = Callable[..., Config]
ENTRIES = 3072


@pytest.fixture(scope="module")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """CIFAR-10's binary version with images of which brightness in a place tells the class."""
  folder = tmp_path_factory.mktemp("cifar")
  rng = np.random.default_rng(0)
  patterns = rng.integers(0, 120, (10, ENTRIES))
  for stem in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
    labels = rng.integers(0, 10, 16)
    pixels = patterns[labels] + rng.integers(0, 120, (16, ENTRIES))
    rows = np.concatenate([labels[:, None], pixels], 1).astype(np.uint8)
    (folder / f"{stem}.bin").write_bytes(rows.tobytes())
  return folder


@pytest.fixture
def make_images(cifar_folder: Path) -> Callable[..., Config]:
  """A residual MLP that compiles in a second; keywords are fields, as `model__norm="rms"`."""

  def make(**fields: object) -> Config:
    settings = {
        "model__kind": "residual_mlp", "model__width": 16, "model__depth": 2,
        "model__norm": "layer", "model__init_std": 0.25, "optim__learning_rate": 3e-3,
        "optim__weight_decay": 0.0, "optim__clip_norm": None, "optim__warmup_steps": 0,
        "train__steps": 12, "train__batch_size": 8, "train__sequence_length": 1,
        "train__eval_every": 6, "train__checkpoint_every": 6, "train__checkpoint_log_base": 12,
        "train__tensorboard": False, "data__corpus": f"cifar10:{cifar_folder}",
        "data__cache_dir": cifar_folder / "cache", "data__input_size": 12,
        "data__eval_sequences": 12, "mesh__data": 1, **fields}
    texts = [(path.replace("__", "."), "none" if value is None else str(value))
             for path, value in settings.items()]
    return config_lib.apply_overrides(Config(), texts)

  return make


def quiet(line: str) -> None:
  del line


def batch(seed: int = 0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {"inputs": rng.standard_normal((8, 1, 12)).astype(np.float32),
          "targets": rng.integers(0, 10, (8, 1)).astype(np.int32),
          "weights": np.ones((8, 1), np.float32)}


def test_squared_error_equals_numpy() -> None:
  rng = np.random.default_rng(0)
  x = rng.standard_normal((5, 1, 7)).astype(np.float32)
  table = rng.standard_normal((7, 4)).astype(np.float32)
  targets = np.array([[0], [3], [1], [1], [2]], np.int32)
  weights = np.array([[1], [1], [0], [1], [1]], np.float32)
  (total, parts), gradient = jax.jit(jax.value_and_grad(
      lambda t: squared_error(x, t, targets, weights), has_aux=True))(table)
  x64 = x[:, 0].astype(np.float64)
  outputs, wanted = x64 @ table, np.eye(4)[targets[:, 0]]
  losses = np.mean((outputs - wanted) ** 2, 1)
  np.testing.assert_allclose(total, np.sum(weights[:, 0] * losses), rtol=1e-5)
  np.testing.assert_allclose(parts["loss"], total)
  right = np.argmax(outputs, 1) == targets[:, 0]
  assert parts["accuracy"] == np.sum(weights[:, 0] * right) and parts["count"] == 4
  np.testing.assert_allclose(
      gradient, 2 / 4 * x64.T @ (weights * (outputs - wanted)), rtol=1e-4, atol=1e-5)


def test_the_network_is_the_papers_formula(make_images: MakeConfig) -> None:
  """x + MLP(LN(x)) a layer from its own sites, in NumPy float64; an untrained output is 0."""
  network = build_network(make_images(model__beta=0.5, model__final_norm=True))
  params = jax.jit(network.init)(jax.random.key(0))
  rng = np.random.default_rng(1)
  first: list[jax.Array] = []

  def observe(site: str, x: jax.Array, is_first: jax.Array) -> dict[str, jax.Array]:
    first.append(jnp.any(is_first))
    return {"x": x}

  inputs = batch()["inputs"]
  apply = jax.jit(lambda p: (network.apply(p, inputs, observe=observe), jnp.any(jnp.stack(
      first[-1:]))))
  (outputs, _), any_first = apply(params)
  np.testing.assert_array_equal(np.abs(outputs), np.zeros((8, 1, 10)))
  assert not any_first, "no image is at position 0"

  # Gains, offsets and the output as after training.
  params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype("f4"),
                        params)
  (outputs, seen), _ = apply(params)
  assert set(seen) == {"resid_pre", "mlp_in", "mlp_hidden", "mlp_out", "final"}
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

  def norm(x: np.ndarray, leaves: Any, i: Any) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.mean(x ** 2, -1, keepdims=True) + 1e-6)
    return x * leaves["scale"][i] + leaves["bias"][i]

  x = inputs.astype(np.float64) @ p["input"]["kernel"]
  layers = p["stacks"]["0"]
  for i in range(2):
    np.testing.assert_allclose(seen["resid_pre"]["x"][i], x, atol=1e-5)
    h = norm(x, layers["norm"], i)
    np.testing.assert_allclose(seen["mlp_in"]["x"][i], h, atol=1e-5)
    hidden = np.maximum(h @ layers["mlp"]["up"]["kernel"][i], 0)
    assert hidden.shape[-1] == 16, "the hidden width is the width"
    np.testing.assert_allclose(seen["mlp_hidden"]["x"][i], hidden, atol=1e-5)
    branch = 0.5 * hidden @ layers["mlp"]["down"]["kernel"][i]
    np.testing.assert_allclose(seen["mlp_out"]["x"][i], branch, atol=1e-5)
    x = x + branch
  x = norm(x, p["final_norm"], ...)
  np.testing.assert_allclose(seen["final"]["x"][0], x, atol=1e-5)
  np.testing.assert_allclose(outputs, x @ p["unembedding"]["kernel"] / np.sqrt(16), atol=1e-5)


def test_the_papers_setup() -> None:
  """Spec 1.5 c: 6 layers of width 1024, about 15 million parameters, its optimiser settings."""
  c = config_lib.resolve(presets.residual_mlp("paper"))
  network = build_network(c)
  count = environment.count_parameters(network)["parameters"]
  norms = 6 * 2 * 1024
  assert count == 3072 * 1024 + 6 * 2 * 1024 ** 2 + 1024 * 10 + norms == 15_751_168
  assert task_of(c.model.kind).flops_per_token(c, network) == 6 * (count - norms)
  assert (c.train.batch_size, c.optim.learning_rate, c.optim.warmup_steps, c.optim.schedule) == (
      2048, 3e-3, 200, "cosine")
  assert c.optim.weight_decay == 0 and c.data.whitening == "pca" and c.data.input_size == 3072
  assert c.train.steps == round(200 * 50_000 / 2048)
  for scale in presets.MLP_SCALES:
    config = config_lib.resolve(presets.residual_mlp(scale))
    assert config_lib.from_dict(config_lib.to_dict(config)) == config == config_lib.resolve(config)


def run(config: Config, steps: int = 2) -> tuple[Any, list[Any]]:
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    history = []
    for i in range(steps):
      state, metrics = trainer.step_measured(state, place_batch(mesh, batch(i)), jax.random.key(1))
      history.append(jax.device_get(metrics))
  return state, history


def test_sharded_unrolled_and_accumulated_are_the_plain_run(make_images: MakeConfig) -> None:
  fields = {"model__beta": 0.7, "model__beta_trainable": True, "model__beta_per_channel": True,
            "optim__name": "sgd", "optim__learning_rate": 0.5}
  state, plain = run(make_images(**fields), 3)
  assert plain[0]["loss"] == pytest.approx(0.1), "zero outputs miss one class of ten by 1"
  other_state, other = run(make_images(
      **fields, mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__grad_accumulation=2,
      model__scan_layers=False, model__remat="full"), 3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other, plain)
  for name, leaf in named_leaves(state["params"]).items():
    np.testing.assert_allclose(named_leaves(other_state["params"])[name], leaf, rtol=1e-4,
                               atol=1e-6, err_msg=name)
  kernel = named_leaves(other_state["params"])["stacks/0/mlp/up/kernel"]
  assert kernel.addressable_shards[0].data.size * 4 == kernel.size
  site = plain[0]["telemetry"]["resid_pre"]
  assert len(site["kurtosis"]) == 2
  for metric in ("kurtosis", "mmr", "rms", "max_abs", "input_correlation"):
    np.testing.assert_array_equal(site[metric], site[metric + "_no_first"])
    assert np.isfinite(site[metric]).all(), metric


def test_a_run_learns_and_resumes_to_the_same_bits(make_images: MakeConfig, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
  config = make_images(train__steps=24, optim__learning_rate=1e-2)
  train(config, tmp_path / "run", quiet)
  printed = capsys.readouterr().out
  records = list(run_directory.read_lines(tmp_path / "run" / "metrics.jsonl"))
  evaluated = [r for r in records if r["split"] == "eval"]
  assert [r["step"] for r in evaluated] == [6, 12, 18, 24]
  assert evaluated[-1]["loss"] < 0.7 * 0.1 and evaluated[-1]["accuracy"] > 0.5
  last = evaluated[-1]
  assert (f"step 24/24  validation loss {last['loss']:.4g}  accuracy {last['accuracy']:.2%}"
          in printed) and "images/s" in printed
  assert all(0 <= r["accuracy"] <= 1 for r in records)
  described = run_directory.read_json(tmp_path / "run" / "env.json")
  assert len(described["corpus_sha256"]) == 64 and described["tokenizer_sha256"] == ""
  assert "80 train and 16 validation images" in described["corpus"]
  assert described["flops_per_token"] == 6 * (12 * 16 + 2 * 2 * 16 * 16 + 16 * 10)

  before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
  with Checkpoints(tmp_path / "run") as checkpoints:
    whole = checkpoints.load_host(24)
  (tmp_path / "run" / "DONE").unlink()
  for step in (18, 24):
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
  train(config, tmp_path / "run", quiet)
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
  with Checkpoints(tmp_path / "run") as checkpoints:
    chex.assert_trees_all_equal(checkpoints.load_host(24), whole)


@pytest.mark.parametrize("kind, roles", (("transformer", "norm"), ("images", "norm,unembedding")))
def test_only_the_chosen_roles_are_trained(kind: str, roles: str, make_config: MakeConfig,
                                           make_images: MakeConfig) -> None:
  """Frankle et al.: the rest keeps its bits, whatever decays, and has no moments."""
  fields = {"optim__train_roles": roles, "optim__weight_decay": 0.1, "optim__learning_rate": 1e-2,
            "optim__decay_roles": "embedding,hidden,unembedding,norm", "optim__clip_norm": 0.1}
  config = (make_images(**fields) if kind == "images" else
            make_config(model__depth=2, model__norm="layer", **fields))
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    before = jax.device_get(named_leaves(state["params"]))
    tokens = np.random.default_rng(0).integers(0, 64, (8, 17)).astype(np.int32)
    rows = batch() if kind == "images" else {
        "inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 16), "f4")}
    for _ in range(3):
      state, _ = trainer.step(state, place_batch(mesh, rows), jax.random.key(1))
  trained = {name for name, role in named_leaves(trainer.network.roles).items()
             if role in roles.split(",")}
  assert 2 <= len(trained) < len(before)
  for name, leaf in named_leaves(state["params"]).items():
    assert np.array_equal(leaf, before[name]) == (name not in trained), name
  moments = sum(leaf.size for leaf in jax.tree.leaves(state["opt_state"]) if leaf.ndim)
  assert moments == 2 * sum(before[name].size for name in trained)


def test_frozen_gradients_do_not_count_in_the_clipping() -> None:
  """The norm that is clipped is that of the trained gradients."""
  optim = config_lib.resolve(Config(optim=config_lib.OptimConfig(
      name="sgd", train_roles=("norm",), clip_norm=1.0, weight_decay=0.0))).optim
  params = {"a": jnp.ones(2), "b": jnp.ones(3)}
  axes = {"a": ("channel",), "b": ("channel",)}
  optimizer = build_optimizer(
      optim, optax.constant_schedule(1.0), {"a": "norm", "b": "hidden"}, axes, params)
  gradients = {"a": jnp.array([0.3, 0.4]), "b": jnp.full(3, 1e6)}
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  np.testing.assert_allclose(updates["a"], [-0.3, -0.4], rtol=1e-6)
  np.testing.assert_array_equal(updates["b"], np.zeros(3))
  with pytest.raises(UserError, match="train_roles=norm: this model's parameters have the roles "
                                      "hidden"):
    build_optimizer(optim, optax.constant_schedule(1.0), {"b": "hidden"}, {"b": axes["b"]},
                    {"b": params["b"]})


@pytest.mark.parametrize("momentum", (0.0, 0.9))
def test_sgd_equals_numpy(momentum: float) -> None:
  optim = config_lib.resolve(Config(optim=config_lib.OptimConfig(
      name="sgd", momentum=momentum, clip_norm=None, weight_decay=0.1,
      decay_roles=("hidden",)))).optim
  roles = {"w": "hidden", "g": "norm"}
  rng = np.random.default_rng(0)
  params = {name: rng.standard_normal(4) for name in roles}
  ours = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
  optimizer = build_optimizer(optim, lambda step: 0.1 * (step + 1), roles,
                              {name: ("channel",) for name in roles}, ours)
  state, update = optimizer.init(ours), jax.jit(optimizer.update)
  buffers = {name: np.zeros(4) for name in roles}
  for step in range(4):
    gradients = {name: rng.standard_normal(4) for name in roles}
    updates, state = update(jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradients),
                            state, ours)
    ours = optax.apply_updates(ours, updates)
    for name, decay in (("w", 0.1), ("g", 0.0)):
      buffers[name] = momentum * buffers[name] + gradients[name]
      params[name] = params[name] - 0.1 * (step + 1) * (buffers[name] + decay * params[name])
  for name, value in params.items():
    np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("field, value, message", (
    ("model__block", "op", "model.block=op: is part of model.kind=transformer and does nothing"),
    ("model__heads", 8, "model.heads=8: is part of model.kind=transformer"),
    ("model__qk_norm", "rms", "model.qk_norm=rms: is part of model.kind=transformer"),
    ("model__embedding_scale", 50, "model.embedding_scale=50.0: is part of"),
    ("data__vocab_size", 300, "data.vocab_size=300: is part of model.kind=transformer"),
    ("train__sequence_length", 128, "must be 1 for model.kind=residual_mlp"),
    ("train__z_loss", 0.1, "train.z_loss=0.1: is part of cross-entropy"),
    ("optim__train_roles", "norm", "leaves out unembedding, which starts at zero"),
    ("optim__train_roles", "norms", "norms is not a parameter role"),
    ("optim__train_roles", "", "nothing would be trained"),
    ("optim__momentum", 0.9, "optim.name=adamw does not read it"),
    ("data__corpus", "python_stdlib", "data.corpus=python_stdlib: holds no images; use digits"),
    ("data__corpus", "cifar10", "data.corpus=cifar10: holds no images; use digits"),
    ("data__corpus", "tfds:own", "data.classes=none: must be given for tfds:own"),
    ("data__input_size", 4000, "an image of cifar10:"),
    ("data__input_size", 0, "must be at least 1"),
    ("data__whitening", "none", "data.whitening=none needs all 3072 entries"),
    ("data__classes", 7, "has 10"),
    ("data__whitening", "zca", "data.whitening=zca: not one of pca, none"),
    ("mesh__tensor", 3, "does not divide model.mlp_width=16"),
))
def test_a_mistake_with_images_is_one_line(field: str, value: object, message: str,
                                           make_images: MakeConfig) -> None:
  with pytest.raises(UserError) as caught:
    make_images(**{field: value})
  assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("field, value, message", (
    ("data__corpus", "digits", "data.corpus=digits: holds images; they are for model.kind="),
    ("data__classes", 10, "is part of model.kind=residual_mlp and does nothing in transformer"),
    ("data__whitening", "none", "is part of model.kind=residual_mlp"),
))
def test_images_are_not_for_a_transformer(field: str, value: object, message: str,
                                          make_config: MakeConfig) -> None:
  with pytest.raises(UserError) as caught:
    make_config(**{field: value})
  assert message in str(caught.value)
