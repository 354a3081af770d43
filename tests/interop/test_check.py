"""Where an error enters, and the binary that says it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.commands import cli
from of_jax.interop import check, load
from of_jax.models.functional import named_leaves
from of_jax.storage.checkpoint import Checkpoints
from tests.golden import foreign

ROOT = Path(__file__).parents[2]


def test_the_block_that_an_error_enters_in_is_named(tmp_path: Path) -> None:
  model = load(foreign.save_folder(tmp_path, "gpt2"))
  right = check.our_stream(model, foreign.TOKENS)
  assert len(right) == 5 and right[-1].shape == (2, 12, 40)
  golden = np.load(Path(foreign.__file__).with_suffix(".npz"))["gpt2/stream"]
  np.testing.assert_allclose([foreign.stream_metrics(x) for x in right[:-1]], golden, rtol=1e-4)
  stack = model.params["stacks"]["0"]
  bias = jnp.asarray(stack["mlp"]["down"]["bias"]).at[1, 0].add(0.5)
  broken = {**model.params, "stacks": {"0": {
      **stack, "mlp": {**stack["mlp"], "down": {**stack["mlp"]["down"], "bias": bias}}}}}
  wrong = check.our_stream(dataclasses.replace(model, params=broken), foreign.TOKENS)
  differences = check.compare(wrong, right)
  assert [d.largest > 1e-3 for d in differences] == [False, False, True, True, True]
  assert check.verdict(differences) == (
      "the error enters after: stream entering block 2; before: stream entering block 3")
  assert "everywhere" in check.verdict(check.compare(right, right))
  # A narrower array behind theirs, as of a projected embedding, cannot be compared.
  narrow = [*right[:3], right[3][..., :4], right[4]]
  assert [d.place for d in check.compare(right, narrow)][-2:] == ["stream entering block 3",
                                                                 "logits"]


@pytest.mark.parametrize("model, message", (
    ("none", "none: no such file or folder"), ("", "--model"),
))
def test_a_mistake_is_one_line(model: str, message: str) -> None:
  command = [sys.executable, "-m", "experiments.load", *([f"--model={model}"] if model else [])]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 1 and result.stdout == ""
  assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
  assert message in result.stderr


def test_the_report_is_printed_and_training_can_go_on(tmp_path: Path) -> None:
  folder, out = foreign.save_folder(tmp_path / "model", "of_parallel"), tmp_path / "out"
  result = subprocess.run(
      [sys.executable, "-m", "experiments.load", f"--model={folder}", "--tensors", f"--out={out}"],
      cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  model = load(folder)
  config = cli.load_config(f"{ROOT}/experiments/configs/loaded.py:{out}",
                           [("data.corpus", "tokens:x.npy")])
  assert config.model == model.config.model and config.data.vocab_size == 40
  assert (config.train.init_from, config.train.sequence_length) == (str(out), 12)
  with Checkpoints(out) as checkpoints:
    saved = named_leaves(checkpoints.load_host(0)["params"])
  assert saved.keys() == named_leaves(model.params).keys()
  for name, leaf in named_leaves(model.params).items():
    np.testing.assert_array_equal(saved[name], leaf, err_msg=name)
  assert "simplified_transformers in safetensors, 15,345 parameters" in result.stdout
  assert "ignored: parallel layers do not use it" in result.stdout
  assert "transformer.h.2.mlp.c_proj.weight" in result.stdout
