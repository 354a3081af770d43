"""Quantising from the command line: foreign weights against NumPy, runs compared, mistakes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from of_jax.analysis import imported, quantisation, replay
from of_jax.config import Config, apply_overrides, to_dict
from of_jax.errors import UserError
from of_jax.quantise.scheme import Scheme, check_model
from of_jax.train import train
from tests.golden import foreign

ROOT = Path(__file__).parents[2]
# What NumPy does in a line: a bound an output channel, the largest magnitude.
WEIGHTS = Scheme(weight_bits=4, weight_granularity="channel", weight_range="min_max",
                 activation_granularity="token", activation_range="min_max", sites=("mlp_up",))
WINDOWS = np.pad(foreign.TOKENS, ((0, 0), (0, 1)), constant_values=3)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
      [sys.executable, "-m", "experiments.quantise", "--noadvice", *arguments], cwd=ROOT,
      text=True, capture_output=True, timeout=600, env=dict(os.environ))


def nats(logits: np.ndarray) -> float:
  """The mean cross-entropy of WINDOWS, in float64."""
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return float(-np.take_along_axis(log_p, WINDOWS[:, 1:, None], -1).mean())


def rounded(kernel: np.ndarray) -> np.ndarray:
  """[layers, in, out] to 4 bits, symmetric, a bound an output."""
  scale = np.abs(kernel).max(1, keepdims=True) / 7
  return (np.round(kernel / scale) * scale).astype(np.float32)


def test_foreign_weights_and_their_cap_are_numpys(tmp_path: Path) -> None:
  """Gemma 2's logits, capped, are PyTorch's; a single site, left out and alone."""
  model = imported.load(foreign.save_folder(tmp_path, "gemma2"))
  assert model.config.model.logit_cap == 10
  batches = replay.token_batches(model.config, WINDOWS, "t")
  found = quantisation.quantise(model, batches, [], WEIGHTS, by_site=True)
  golden = np.load(Path(foreign.__file__).with_suffix(".npz"))["gemma2/logits"]
  assert found["loss"] == pytest.approx(nats(golden), rel=1e-5) and found["num_tokens"] == 24
  # Without the cap it would be another number.
  assert abs(nats(10 * np.arctanh(golden.astype(np.float64) / 10)) - nats(golden)) > 1e-3
  up = model.params["stacks"]["0"]["mlp"]["up"]
  up["kernel"] = rounded(np.asarray(up["kernel"]))
  after = nats(model.logits(foreign.TOKENS))
  assert abs(after - found["loss"]) > 1e-3
  assert found["perplexity_quantised"]["mean"] == pytest.approx(np.exp(after), rel=1e-5)
  assert found["increase"]["mean"] == pytest.approx(after - found["loss"], abs=1e-5)
  site = found["by_site"]["mlp_up"]
  assert found["by_site"].keys() == {"mlp_up"} and found["sites"] == ["mlp_up"]
  assert site["only"] == pytest.approx(found["perplexity_quantised"]["mean"], rel=1e-6)
  assert site["all_but"] == pytest.approx(found["perplexity"], rel=1e-6)
  with pytest.raises(UserError, match="sites=attn_gate: this model has none of them"):
    quantisation.quantise(model, batches, [], dataclasses.replace(WEIGHTS, sites=("attn_gate",)))


@pytest.mark.slow
def test_a_foreign_model_rotated(tmp_path: Path) -> None:
  """GPT-2, whose LayerNorms stay; what the rotation leaves is in the file."""
  folder, out = foreign.save_folder(tmp_path / "model", "gpt2"), tmp_path / "out"
  np.save(tmp_path / "t.npy", WINDOWS)
  done = run(f"--model={folder}", f"--tokens={tmp_path / 't.npy'}", "--hadamard", "--integer",
             f"--out={out}")
  assert done.returncode == 0, done.stderr
  found = json.loads((out / "quantise.json").read_text())
  golden = np.load(Path(foreign.__file__).with_suffix(".npz"))["gpt2/logits"]
  assert found["loss"] == pytest.approx(nats(golden), rel=1e-5)
  assert found["loss_rotated"] == pytest.approx(found["loss"], rel=1e-5)
  assert found["kurtosis_rotated"] != found["kurtosis"] and found["hadamard"] is True
  assert found["arithmetic"] == "integer" and found["provenance"]["kind"] == "gpt2 in safetensors"
  assert "rotated" in done.stdout and abs(found["increase"]["mean"]) < 0.5


@pytest.mark.slow
def test_runs_compared(make_config: Any, tmp_path: Path) -> None:
  runs = [tmp_path / block for block in ("pre", "op")]
  for path in runs:
    train(make_config(model__block=path.name, train__steps=2), path, lambda line: None)
  done = run(*(f"--run={path}" for path in runs), "--weight_bits=4", f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "out" / "quantise.json").read_text())["runs"]
  assert [one["model"] for one in found] == list(map(str, runs))
  assert all(one["weight_bits"] == 4 and one["perplexity_quantised"]["seeds"] == [0, 1, 2]
             for one in found)
  assert (tmp_path / "out" / "quantise.png").stat().st_size > 1000


def written(folder: Path, *fields: tuple[str, str]) -> Config:
  """The config of a run of which nothing else is there."""
  config = apply_overrides(Config(), fields)
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(to_dict(config)))
  return config


@pytest.mark.parametrize("field, arguments, message", (
    (("model.block", "post"), ["--hadamard"], "config.model.norm=rms: in block post its gains act"),
    (("model.width", "96"), ["--weight_granularity=group", "--group_size=64"],
     "group_size=64: does not divide model.width=96")))
def test_a_model_that_a_scheme_is_not_for(field: tuple[str, str], arguments: list[str],
                                          message: str, tmp_path: Path) -> None:
  written(tmp_path / "run", field)
  done = run(f"--run={tmp_path / 'run'}", *arguments)
  assert done.returncode == 1 and done.stderr.startswith(f"error: {message}"), done.stderr
  assert len(done.stderr.strip().splitlines()) == 1 and "jax" not in done.stdout


def test_images_are_refused() -> None:
  config = apply_overrides(Config(), [
      ("model.kind", "residual_mlp"), ("data.corpus", "digits"), ("train.sequence_length", "1"),
      ("optim.name", "sgd")])
  with pytest.raises(UserError, match="config.model.kind=residual_mlp: quantisation is of"):
    check_model(Scheme(), config)
