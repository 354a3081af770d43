"""Every field of the config decides something: runs and builds that use every part read it.

Each section has a planted field that nothing reads, so that a change which would let a dead field
pass (a loop over all fields outside the config, say) is found as well.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax import config as config_lib
from of_jax import variants
from of_jax.config import Config, apply_overrides, declared_metrics, fields
from of_jax.config.declare import field
from of_jax.errors import UserError
from tests.planted import forget

# What all of it reads is traced once.
pytestmark = pytest.mark.xdist_group("fields")

DEAD = "planted_and_dead"
SECTIONS = tuple(section.name for section in dataclasses.fields(Config))
_PACKAGE = Path(config_lib.__file__).parents[1]
# The config reads its fields to check, copy, compare and show them, which uses none of them; but
# what is measured is decided there.
_CONFIG = str(_PACKAGE / "config")
_SELECTION = declared_metrics.__file__
# `resolve` turns them into the others.
COMPUTED = {"model.beta": "beta_mlp", "model.residual_scale": "beta",
            "optim.warmup_fraction": "warmup_steps", "optim.decay_fraction": "decay_steps"}


def unread(read: set[str]) -> list[str]:
  """Says what to do about each field that nothing has read."""
  return [f"config.{path}: nothing reads it; use it, or delete it from {declared_in(path)}"
          for path in fields() if path not in read and path not in COMPUTED]


def declared_in(path: str) -> str:
  """The file that declares a field."""
  section: type = typing.get_type_hints(Config)[path.split(".")[0]]
  return section.__module__.replace(".", "/") + ".py"


@pytest.fixture(scope="module")
def read(token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[str]]:
  """The fields that were read, with a dead field in each section until the module's tests end."""
  found: set[str] = set()
  with pytest.MonkeyPatch.context() as patch:
    _plant(patch)
    forget()
    with pytest.MonkeyPatch.context() as spying:
      _spy(spying, found)
      _use_everything(token_file, tmp_path_factory.mktemp("runs"))
    yield found
  forget()


def _plant(patch: pytest.MonkeyPatch) -> None:
  parts = []
  for section in dataclasses.fields(Config):
    kind = type(section.default)
    planted = dataclasses.make_dataclass(
        kind.__name__, [(DEAD, int, field(0, "nothing"))], bases=(kind,), frozen=True)
    parts.append(planted())
    patch.setattr(section, "default", parts[-1])
  patch.setattr(Config.__init__, "__defaults__", tuple(parts))


def _spy(patch: pytest.MonkeyPatch, found: set[str]) -> None:
  for section in dataclasses.fields(Config):
    kind = type(section.default)
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]

    def spy(self: Any, name: str, names: set[str] = names, section: str = section.name) -> Any:
      if name in names:
        file = inspect.currentframe().f_back.f_code.co_filename  # type: ignore[union-attr]
        if file == _SELECTION or file.startswith(str(_PACKAGE)) and not file.startswith(_CONFIG):
          found.add(f"{section}.{name}")
      return object.__getattribute__(self, name)

    patch.setattr(kind, "__getattribute__", spy)


def _small(token_file: Path, **overrides: Any) -> Config:
  """A model that compiles in seconds; keywords are fields, as `model__block="op"`."""
  settings = {
      "model__width": 32, "model__depth": 2, "model__heads": 4, "train__steps": 3,
      "train__batch_size": 8, "train__sequence_length": 16, "train__eval_every": 4,
      "train__tensorboard": False, "data__corpus": f"tokens:{token_file}", "data__vocab_size": 64,
      "data__eval_sequences": 16, "optim__warmup_steps": 0, "mesh__data": 1, **overrides}
  return apply_overrides(Config(), [
      (path.replace("__", "."), str(value)) for path, value in settings.items()])


def _use_everything(token_file: Path, root: Path) -> None:
  from of_jax.train import train

  def small(**overrides: Any) -> Config:
    return _small(token_file, **overrides)

  train(small(model__block="op", model__beta_trainable=True, model__positions="rotary",
              model__final_norm=True, train__tweo_weight=0.01, optim__projection_every=1,
              optim__projection_gains="decay",
              model__tied_embeddings=True, train__tensorboard=True, data__cross_documents=False,
              data__end_token_id=0, data__begin_token=True, data__begin_token_id=1),
        root / "op", log=lambda line: None)
  _train_on_images(root)
  with pytest.raises(UserError):
    train(small(train__init_from=root / "op"), root / "fine", lambda line: None)
  (root / "term.py").write_text("def term(x): return x[..., 0]")
  train(small(train__loss_term=f"{root}/term.py:term", train__loss_term_weight=0.5,
              telemetry__level="off"), root / "term", lambda line: None)
  _prepare_corpora(small, root)
  _build_every_variant(small)


def _train_on_images(root: Path) -> None:
  from of_jax.train import train
  rows = np.random.default_rng(0).integers(0, 10, (8, 3073)).astype(np.uint8)
  for stem in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
    (root / f"{stem}.bin").write_bytes(rows.tobytes())
  train(apply_overrides(Config(), [
      ("model.kind", "residual_mlp"), ("model.width", "8"), ("model.depth", "1"),
      ("data.corpus", f"cifar10:{root}"), ("data.input_size", "4"),
      ("data.eval_sequences", "8"), ("data.cache_dir", str(root / "images")),
      ("train.sequence_length", "1"), ("train.steps", "1"), ("train.batch_size", "8"),
      ("train.tensorboard", "false"), ("optim.name", "sgd"), ("optim.momentum", "0.9"),
      ("mesh.data", "1")]), root / "mlp", log=lambda line: None)


def _prepare_corpora(small: Callable[..., Config], root: Path) -> None:
  from of_jax.data.corpora import prepare
  raw = root / "raw.bin"
  raw.write_bytes(bytes(4096))
  prepare(small(data__corpus=f"tokens:{raw}").data, lambda line: None)
  text = root / "text.txt"
  text.write_text("".join(f"line {i} of a small text\n" for i in range(2000)))
  prepare(small(data__corpus=f"text:{text}", data__vocab_size=300,
                data__cache_dir=root / "cache").data, lambda line: None)


def _build_every_variant(small: Callable[..., Config]) -> None:
  """Builds each variant without compiling it, and what chooses among options in the model."""
  from of_jax.models.functional import build_network
  from of_jax.optim.build import build_optimizer
  from of_jax.optim.schedules import learning_rate_schedule
  models = [{"model__block": name} for name in variants.names("models/blocks")]
  models += [{"model__norm": name} for name in variants.names("models/norms") if name != "none"]
  models += [{"model__mlp": "leaky_relu", "model__attention_softmax": "clipped",
              "model__attention_gate": "head", "model__positions": "rotary",
              "model__rope_scaling": "llama3"}]
  models += [{"model__positions": "rotary", "model__rope_scaling": name} for name in (
      "dynamic", "yarn")]
  models += [{"model__positions": "rotary", "model__rope_scaling": "longrope",
              "model__rope_short_divisors": "1,1,1,1", "model__rope_long_divisors": "2,2,2,2"}]
  models += [{"model__attention": "linear", "model__positions": "none",
              "model__linear_positions": "all"}]
  for model in models:
    network = build_network(small(**model))
    params = jax.eval_shape(network.init, jax.random.key(0))
    if {"model__rope_scaling", "model__attention"} & set(model):
      jax.eval_shape(network.apply, params, jnp.zeros((1, 16), int))
  params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
  scaled: dict[str, Any] = {"optim__scaling": "mup", "optim__base_width": 2}
  for own in [*({"optim__name": name} for name in variants.names("optim/optimizers")), scaled]:
    optim = small(**own).optim
    build_optimizer(optim, lambda step: 0.1, {"w": "hidden", "b": "bias"},
                    {"w": ("embed", "mlp"), "b": ("mlp",)}, params)
  for schedule in ("constant", "wsd"):
    learning_rate_schedule(small(optim__schedule=schedule).optim, 10)


def test_every_field_is_read(read: set[str]) -> None:
  lines = [line for line in unread(read) if DEAD not in line]
  assert not lines, "\n".join(lines)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_dead_field_is_found(section: str, read: set[str]) -> None:
  file = "model_section" if section == "model" else "sections"
  assert (f"config.{section}.{DEAD}: nothing reads it; use it, or delete it from "
          f"of_jax/config/{file}.py") in unread(read)


@pytest.mark.parametrize("path", COMPUTED)
def test_what_is_computed_away_decides_another_field(path: str) -> None:
  settings = {"model.beta": {}, "model.residual_scale": {"model.block": "residual_scaled"},
              "optim.warmup_fraction": {}, "optim.decay_fraction": {"optim.schedule": "wsd"}}[path]
  other = "inverse_depth" if path == "model.residual_scale" else "0.4"
  before, after = (apply_overrides(Config(), [*settings.items(), *extra])
                   for extra in ((), ((path, other),)))
  target = f"{path.partition('.')[0]}.{COMPUTED[path]}"
  assert config_lib.get(before, target) != config_lib.get(after, target)
