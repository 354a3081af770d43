"""Configs: overrides, one-line errors, resolution, and that every field is read."""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from of_jax import config as config_lib
from of_jax import presets
from of_jax.config import Config, apply_overrides, fields, from_dict, resolve, to_dict
from of_jax.errors import UserError

MakeConfig = Callable[..., Config]


def test_overrides_are_typed() -> None:
  config = apply_overrides(Config(), [
      ("model.width", "1_024"), ("optim.learning_rate", "3e-3"), ("optim.clip_norm", "none"),
      ("model.final_norm", "True"), ("optim.decay_roles", "hidden,embedding"),
      ("model.beta", "0.3"), ("model.beta", "none"), ("train.seed", "7"), ("train.seed", "8")])
  assert (config.model.width, config.optim.learning_rate, config.optim.clip_norm) == (
      1024, 3e-3, None)
  assert config.model.final_norm is True and config.model.beta is None
  assert config.optim.decay_roles == ("hidden", "embedding") and config.train.seed == 8


@pytest.mark.parametrize("path, text, message", (
    ("model.blok", "op", "config.model.blok: no such field; did you mean config.model.block?"),
    ("train.learning_rate", "1", "did you mean config.optim.learning_rate?"),
    ("learning_rate", "1", "did you mean config.optim.learning_rate?"),
    ("modle.width", "64", "did you mean config.model.width?"),
    ("zzz", "64", "config.zzz: no such field; --help lists all fields"),
    ("model.width", "wide", "config.model.width=wide: not a whole number"),
    ("model.width", "1.5", "config.model.width=1.5: not a whole number"),
    ("model.width", "none", "not a whole number"),
    ("optim.eps", "small", "config.optim.eps=small: not a number"),
    ("optim.eps", "nan", "not a finite number"),
    ("model.final_norm", "yes", "config.model.final_norm=yes: not true or false"),
    ("optim.clip_norm", "off", "config.optim.clip_norm=off: not a number or none"),
    ("model.block", "opp", "not one of op, pre; did you mean op?"),
    ("model.qk_norm", "lay", "did you mean layer?"),
    ("model.heads", "3", "does not divide model.width=128; nearest that does: 2"),
    ("optim.warmup_steps", "2000", "the warmup is longer than the training, train.steps=1000"),
    ("mesh.data", "5", "cannot be split over the mesh's data x fsdp = 5 devices; nearest that can"
                       ": 30"),
    ("mesh.fsdp", "3", "cannot be split"),
    ("mesh.tensor", "8", "does not divide model.heads=4"),
    ("mesh.fsdp", "-1", "only one mesh axis can be -1"),
    ("train.grad_accumulation", "5", "does not divide train.batch_size=32"),
    ("train.steps", "0", "must be at least 1"),
    ("train.batch_size", "-4", "must be at least 1"),
    ("optim.b2", "1", "must be at least 0 and below 1"),
    ("model.dropout", "1.0", "below 1"),
    ("model.attention_cap", "0", "must be above 0"),
    ("optim.decay_roles", "hiden", "hiden is not a parameter role"),
    ("data.corpus", "wikipedia", "not python_stdlib, pypi_code, text:PATH"),
    ("data.vocab_size", "200", "at least 258"),
    ("data.end_token_id", "0", "only for data.corpus=tokens:PATH"),
    ("model.mlp_input_scale", "2", "part of model.block=op"),
    ("model.beta_trainable", "true", "there is no gain to train"),
    ("train.checkpoint_log_base", "1", "must be at least 2"),
))
def test_a_mistake_is_one_line(path: str, text: str, message: str) -> None:
  with pytest.raises(UserError) as caught:
    apply_overrides(Config(), [(path, text)])
  assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rotary_needs_an_even_head_dimension() -> None:
  with pytest.raises(UserError, match="even head dimension"):
    apply_overrides(Config(), [("model.width", "12"), ("model.positions", "rotary")])


def test_a_wrong_type_in_a_config_file_is_one_line() -> None:
  wrong: Any = "128"
  config = dataclasses.replace(Config(), model=dataclasses.replace(Config().model, width=wrong))
  with pytest.raises(UserError, match="config.model.width='128': not a whole number"):
    resolve(config)


def test_json_round_trip() -> None:
  for name in presets.SIZES:
    config = resolve(presets.preset(name))
    assert from_dict(to_dict(config)) == config == resolve(config)
  with pytest.raises(UserError, match="no such field"):
    from_dict({"model": {"blok": "op"}})


def test_resolved_configs_hold_no_auto() -> None:
  config = apply_overrides(Config(), [("model.block", "op"), ("model.mlp", "swiglu"),
                                      ("model.mlp_input_scale", "none")])
  model = config.model
  assert model.qk_norm == "rms" and model.beta == pytest.approx(12 ** -0.5)
  assert model.mlp_width == 344
  assert model.mlp_input_scale == pytest.approx(1 / (0.02 * 128 ** 0.5))
  assert config.optim.warmup_steps == 50
  assert apply_overrides(Config(), []).model.qk_norm == "none"


def test_the_papers_setup() -> None:
  """Spec 1.5 a: every number of He et al. 2024, App. D, "CodeParrot"."""
  c = resolve(presets.preset("130m"))
  assert (c.model.width, c.model.depth, c.model.mlp, c.model.mlp_width) == (768, 6, "relu", 3072)
  assert not c.model.tied_embeddings and not c.model.final_norm
  assert (c.model.positions, c.model.embedding_scale, c.model.init_std) == ("learned", 50, 0.02)
  assert (c.train.steps, c.train.batch_size, c.train.sequence_length) == (80_000, 32, 128)
  assert (c.optim.b1, c.optim.b2, c.optim.eps, c.optim.weight_decay, c.optim.clip_norm) == (
      0.9, 0.999, 1e-8, 0.1, 1.0)
  assert (c.optim.learning_rate, c.optim.schedule, c.optim.warmup_steps) == (1e-3, "linear", 4000)


def test_every_field_is_described() -> None:
  help_text = config_lib.field_help()
  assert all(f"--config.{path}=" in help_text and field.metadata["doc"]
             for path, field in fields().items())


def test_every_field_is_read(make_config: MakeConfig, tmp_path: Path, token_file: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
  """Runs that use every part of the system; a field that none of them reads does nothing."""
  from of_jax.data.corpora import prepare
  from of_jax.train import train
  read: set[str] = set()
  outside = str(Path(config_lib.__file__))
  for section in dataclasses.fields(Config):
    kind = type(getattr(Config(), section.name))
    names = {f.name for f in dataclasses.fields(kind)}

    def spy(self: Any, name: str, names: set[str] = names, section: str = section.name) -> Any:
      caller = inspect.currentframe().f_back  # type: ignore[union-attr]
      # config.py reads every field to check it, dataclasses to copy and compare: neither uses it.
      if name in names and caller.f_code.co_filename not in (  # type: ignore[union-attr]
          outside, dataclasses.__file__, "<string>"):
        read.add(f"{section}.{name}")
      return object.__getattribute__(self, name)

    monkeypatch.setattr(kind, "__getattribute__", spy)
  # mesh is read by axis name, which is a loop over a tuple: the spy sees it all the same.
  train(make_config(model__block="op", model__beta_trainable=True, model__positions="rotary",
                    model__tied_embeddings=True, train__tensorboard=True, train__steps=2,
                    data__cross_documents=False, data__end_token_id=0, data__begin_token=True,
                    data__begin_token_id=1), tmp_path / "op", log=lambda line: None)
  train(make_config(optim__schedule="wsd", train__steps=3), tmp_path / "pre",
        log=lambda line: None)
  with pytest.raises(UserError):
    train(make_config(train__init_from=str(tmp_path / "op")), tmp_path / "fine", lambda line: None)
  raw = tmp_path / "raw.bin"
  raw.write_bytes(bytes(4096))
  prepare(make_config(data__corpus=f"tokens:{raw}").data, lambda line: None)
  text = tmp_path / "text.txt"
  text.write_text("".join(f"line {i} of a small text\n" for i in range(2000)))
  prepare(make_config(data__corpus=f"text:{text}", data__vocab_size=300,
                      data__cache_dir=str(tmp_path / "cache")).data, lambda line: None)
  # `resolve` turns them into others.
  computed_away = {"model.beta", "optim.warmup_fraction", "optim.decay_fraction"}
  assert set(fields()) - read - computed_away == set(), sys.version
