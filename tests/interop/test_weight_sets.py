"""Two sets of weights in a folder: one line that names both, or the choice that a user makes."""

import json
from pathlib import Path

import numpy as np
import pytest

from of_jax.errors import UserError
from of_jax.interop import open_source, weight_sets
from tests.golden import foreign

FORM = "gpt2"
BIAS = "transformer.ln_f.bias"


def sharded(folder: Path, arrays: dict[str, np.ndarray], of: int = 2) -> Path:
  """Writes shards and their index into the folder, beside what is there."""
  folder.mkdir(exist_ok=True)
  names, places = list(arrays), {}
  for i in range(of):
    file = f"model-0000{i + 1}-of-0000{of}.safetensors"
    part = {name: arrays[name] for name in names[i::of]}
    (folder / file).write_bytes(foreign.safetensors(part))
    places |= {name: file for name in part}
  (folder / weight_sets.INDEX).write_text(json.dumps({"weight_map": places}))
  return folder


def other() -> dict[str, np.ndarray]:
  return {**foreign.weights(FORM), BIAS: np.ones(24, np.float32)}


def notes(folder: Path, weights: str | None = None) -> str:
  return " ".join(open_source(folder, weights).notes)


def test_sets_that_differ_are_named_and_chosen(tmp_path: Path) -> None:
  folder = sharded(foreign.save_folder(tmp_path / "model", FORM), other())
  with pytest.raises(UserError, match="two sets of weights, model.safetensors and model.safetensor"
                     "s.index.json, and transformer.ln_f.bias is not the same in both; choose with "
                     "--weights=single .* or --weights=sharded") as error:
    open_source(folder)
  assert "\n" not in str(error.value)
  found = {choice: open_source(folder, choice).tensors.look("ln_f.bias", (24,))
           for choice in ("single", "sharded")}
  np.testing.assert_array_equal(found["single"], foreign.weights(FORM)[BIAS])
  np.testing.assert_array_equal(found["sharded"], np.ones(24))
  assert "model.safetensors.index.json is read; not model.safetensors beside it" in notes(
      folder, "sharded")
  fewer = {name: array for name, array in foreign.weights(FORM).items() if name != BIAS}
  sharded(folder, fewer)
  with pytest.raises(UserError, match="ln_f.bias is in model.safetensors and not in model.saf"):
    open_source(folder)


def test_sets_that_are_the_same_need_no_choice(tmp_path: Path) -> None:
  folder = sharded(foreign.save_folder(tmp_path / "model", FORM), foreign.weights(FORM))
  assert not notes(folder)
  (folder / weight_sets.INDEX).unlink()
  assert not notes(folder)


def test_leftovers_of_an_earlier_save(tmp_path: Path) -> None:
  """A shard of another split, a variant, other formats, an adapter; what holds no weights."""
  folder = sharded(tmp_path / "model", foreign.weights(FORM))
  (folder / "config.json").write_text(json.dumps(foreign.FORMS[FORM]))
  for name in ("optimizer.pt", "training_args.bin", "tokenizer.json.bin"):
    (folder / name).write_bytes(b"x")
  assert not notes(folder)
  stray = folder / "model-00003-of-00003.safetensors"
  stray.write_bytes(foreign.safetensors({BIAS: np.ones(24, np.float32)}))
  with pytest.raises(UserError, match="index.json and model-00003-of-00003.safetensors, and transf"
                     "ormer.ln_f.bias is not the same in both; take model-00003.* away, or say"):
    open_source(folder)
  assert "not model-00003-of-00003.safetensors beside it" in notes(folder, "sharded")
  stray.write_bytes(foreign.safetensors({BIAS: foreign.weights(FORM)[BIAS]}))
  assert not notes(folder)
  for name, content in (("consolidated.safetensors", foreign.safetensors(
      {"norm.weight": np.ones(24, np.float32)})), ("pytorch_model.bin", b"x"),
                        ("model-q4.gguf", b"GGUF")):
    (folder / name).write_bytes(content)
    assert f"model.safetensors.index.json is read; not {name} beside it" in notes(folder)
    (folder / name).unlink()
  (folder / "model.fp16.safetensors").write_bytes(
      foreign.safetensors(foreign.weights(FORM), "F16"))
  with pytest.raises(UserError, match="index.json and model.fp16.safetensors, and .* is not the"):
    open_source(folder)
  (folder / "model.fp16.safetensors").unlink()
  (folder / "adapter_config.json").write_text("{}")
  with pytest.raises(UserError, match="holds adapter_config.json beside model.safetensors.index"):
    open_source(folder)
  assert open_source(folder, "sharded")


def test_choices_that_cannot_be_made(tmp_path: Path) -> None:
  folder = foreign.save_folder(tmp_path / "model", FORM)
  for choice, message in (("sharded", "--weights=sharded: holds no model.safetensors.index.json"),
                          ("both", "--weights=both: must be single or sharded")):
    with pytest.raises(UserError, match=message):
      open_source(folder, choice)
  (tmp_path / "x.gguf").write_bytes(b"GGUF")
  with pytest.raises(UserError, match="--weights=single chooses among the files of a folder"):
    open_source(tmp_path / "x.gguf", "single")
  (tmp_path / "y.gguf").write_bytes(b"GGUF")
  with pytest.raises(UserError, match="x.gguf itself, or another of the 2 .gguf files there"):
    open_source(tmp_path)
  change = {**foreign.FORMS[FORM], "transformers_weights": "other.safetensors"}
  (folder / "config.json").write_text(json.dumps(change))
  with pytest.raises(UserError, match="transformers_weights=other.safetensors: of_jax reads model"):
    open_source(folder)


def test_a_choice_behind_a_path(tmp_path: Path) -> None:
  assert weight_sets.split_choice("a@single") == ("a", "single")
  assert weight_sets.split_choice("a@16") == ("a@16", None)
  (tmp_path / "b@sharded").mkdir()
  assert weight_sets.split_choice(f"{tmp_path}/b@sharded") == (f"{tmp_path}/b@sharded", None)
