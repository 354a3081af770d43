"""Fine-tuning of models that were not trained here: sharded, recorded, resumed, restored."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import of_jax
from of_jax.commands import cli
from of_jax.config import Config, resolve
from of_jax.errors import UserError
from of_jax.interop import load
from of_jax.models.functional import named_leaves
from of_jax.optim.normalize_project import NaPState
from of_jax.storage import run_directory
from of_jax.storage.digest import as_text, digest
from of_jax.train import init_from, train
from of_jax.train.sharding import make_mesh
from of_jax.train.trainer import make_trainer
from tests.golden import foreign

LOADED = "experiments/configs/loaded.py"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
  path = tmp_path_factory.mktemp("few") / "tokens.npy"
  np.save(path, np.random.default_rng(0).integers(0, 40, 4_000).astype(np.uint16))
  return path


def fine_tuning(path: Path, tokens: Path, **overrides: object) -> Config:
  """Two steps on eight devices: every parameter split over four, or its heads over two."""
  fields = {"data.corpus": f"tokens:{tokens}", "data.eval_sequences": 8, "train.steps": 2,
            "train.batch_size": 8, "train.checkpoint_every": 1, "train.tensorboard": False,
            "telemetry.level": "off", "mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2,
            "optim.warmup_steps": 0, **{k.replace("__", "."): v for k, v in overrides.items()}}
  return cli.load_config(f"{LOADED}:{path}", [(k, str(v)) for k, v in fields.items()])


@pytest.mark.slow
def test_a_foreign_model_goes_on(tokens: Path, tmp_path: Path) -> None:
  folder = foreign.save_folder(tmp_path / "model", "qwen3")
  model, run = load(folder), tmp_path / "run"
  config = fine_tuning(folder, tokens)
  assert config.model == model.config.model and config.train.init_from == str(folder)
  lines: list[str] = []
  train(config, run, lines.append)

  record = json.loads((run / run_directory.ENVIRONMENT).read_text())["init_from"]
  assert record == {"path": str(folder), "step": None, "kind": "qwen3 in safetensors",
                    "digest": as_text(digest(model.params, 0)), "differs": [], "notes": []}
  assert f"starts from {folder}: qwen3 in safetensors, digest {record['digest'][:16]}" in lines

  first, last = (of_jax.analysis.restore(run, step) for step in (0, 2))
  assert first.digest == record["digest"] and last.digest != first.digest
  for name, leaf in named_leaves(model.params).items():
    np.testing.assert_array_equal(named_leaves(first.params)[name], leaf, err_msg=name)
  # One step moves by about the rate; the function is still near the original's.
  moved = last.logits(foreign.TOKENS) - model.logits(foreign.TOKENS)
  assert 1e-4 < np.abs(moved).max() < 0.1

  # Killed after step 1, and the source gone: the same end.
  metrics = (run / run_directory.METRICS).read_text()
  shutil.rmtree(run / run_directory.CHECKPOINTS / "2")
  (run / run_directory.DONE).unlink()
  shutil.rmtree(folder)
  train(config, run, lines.append)
  assert lines[-1].endswith("finished") and (run / run_directory.METRICS).read_text() == metrics
  assert of_jax.analysis.restore(run, 2).digest == last.digest
  again = json.loads((run / run_directory.ENVIRONMENT).read_text())
  assert again["init_from"] == record and again["resumed"][0]["after_step"] == 1


def test_what_cannot_be_started_from_is_one_line(tokens: Path, tmp_path: Path) -> None:
  folder = foreign.save_folder(tmp_path / "model", "gpt2")
  config = fine_tuning(folder, tokens)
  run = tmp_path / "run"

  def fails(message: str, config: Config) -> None:
    with pytest.raises(UserError, match=message) as error:
      train(config, run, lambda line: None)
    assert "\n" not in str(error.value) and not run.exists()

  def changed(section: str, **fields: object) -> Config:
    part = dataclasses.replace(getattr(config, section), **fields)  # type: ignore[arg-type]
    return resolve(dataclasses.replace(config, **{section: part}))

  fails(r"init_from=.*model: parameter embedding/position is \(12, 24\) there and \(8, 24\) here",
        changed("train", sequence_length=8))
  fails(r"parameter stacks/0/mlp/down/kernel is \(3, 96, 24\) there and \(3, 48, 24\) here",
        changed("model", mlp_width=48))
  fails("init_from=.*none is not a run directory, nor a foreign model",
        changed("train", init_from=str(tmp_path / "none")))
  (folder / "model.safetensors").write_bytes(b"\x80\x04")
  fails("init_from=.*model.safetensors: .*a pickle", config)
  with pytest.raises(UserError, match="loaded.py:.*none: .*no such file or folder"):
    cli.load_config(f"{LOADED}:{tmp_path / 'none'}")


def test_another_function_of_the_same_shapes_is_said(tokens: Path, tmp_path: Path) -> None:
  """And an optimiser that keeps the norms of the start keeps those of what was loaded."""
  folder = foreign.save_folder(tmp_path / "model", "gpt2")
  config = fine_tuning(folder, tokens, model__mlp="relu", model__dropout=0.1,
                       optim__projection_every=1)
  lines: list[str] = []
  mesh = make_mesh(config)
  trainer = make_trainer(config, mesh)
  found = init_from.load(config, trainer.network, trainer.shardings["params"], lines.append)
  assert found is not None and found.record["differs"] == ["mlp (gelu there, relu here)"]
  assert lines[0].endswith("; the model differs in mlp (gelu there, relu here)")
  with jax.set_mesh(mesh):
    state = trainer.init(jax.random.key(0), found.params)
  nap = next(node for node in jax.tree.leaves(
      state["opt_state"], is_leaf=lambda node: isinstance(node, NaPState))
      if isinstance(node, NaPState))
  kernels = np.stack([foreign.weights("gpt2")[f"transformer.h.{i}.mlp.c_proj.weight"]
                      for i in range(3)])
  np.testing.assert_allclose(nap.norms["stacks"]["0"]["mlp"]["down"]["kernel"],
                             np.sqrt(np.sum(kernels ** 2, (1, 2))), rtol=1e-5)
